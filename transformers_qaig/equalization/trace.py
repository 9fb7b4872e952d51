"""Runs a block on a captured call and records what its linears read."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.first_call import first_call


@dataclass
class Read:
    """One input tensor [..., in_features], the linears that read it, and when the first of them ran."""

    linears: list[str]
    x: Tensor
    step: int


@dataclass
class Trace:
    """The record of a call: reads in order, when each norm and linear first ran, every module that ran, all results.

    `repeated` has the linears that ran several times, which are in no read, and how often.
    """

    reads: list[Read]
    first_run: dict[str, int]
    ran: set[str]
    output: list[Tensor]
    repeated: dict[str, int]


def random_twin(block: nn.Module, generator: torch.Generator, device: torch.device) -> nn.Module:
    """Makes an fp32 copy without hooks, with random weights that keep activations of order one and no gate shut."""
    memo: dict[int, Any] = {}  # by id, what deepcopy is to use instead of a copy
    for p in block.parameters():
        memo[id(p)] = nn.Parameter(_random_like(p, generator, device), requires_grad=False)
    for buffer in block.buffers():
        memo[id(buffer)] = _fresh_tensor(buffer).to(device)
    for module in block.modules():
        for key, value in vars(module).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                memo[id(value)] = OrderedDict()
            elif key == "forward":  # a wrapper put on this instance; it may hold what cannot be copied
                memo[id(value)] = None
    twin = copy.deepcopy(block, memo)
    for module in twin.modules():
        vars(module).pop("forward", None)
    return twin.eval()


def _random_like(p: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    if not p.is_floating_point():
        return p.detach().clone().to(device)
    if p.dim() >= 2:
        return torch.randn(p.shape, generator=generator).to(device) * p.shape[-1] ** -0.5
    return torch.rand(p.shape, generator=generator).to(device) + 0.5


def record(block: nn.Module, run: Callable[[], Any]) -> Trace:
    """Runs the block once; records the order of norms and linears and which tensor each linear reads."""
    reads: dict[tuple[Any, ...], Read] = {}
    calls: dict[str, list[int]] = {}
    alive: list[Tensor] = []  # so that no data pointer is used again
    step = 0

    def before(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal step
            step += 1
            calls.setdefault(name, []).append(step)
            if isinstance(module, nn.Linear):
                x = _first(args, kwargs)
                layout = () if x.is_contiguous() else (x.shape, x.stride())
                key = (x.data_ptr(), x._version, x.numel(), x.shape[-1], layout)
                if key not in reads:
                    alive.append(x)
                    reads[key] = Read([], x.clone(), step)
                reads[key].linears.append(name)

        return hook

    handles = [m.register_forward_pre_hook(before(n), with_kwargs=True) for n, m in block.named_modules()]
    try:
        output = [t.clone() for t in tensors(run())]
    finally:
        for handle in handles:
            handle.remove()
    for read in reads.values():
        read.linears = [name for name in read.linears if len(calls[name]) == 1]
    first_run = {n: steps[0] for n, steps in calls.items() if _can_absorb(block.get_submodule(n))}
    linears = {name for name in calls if isinstance(block.get_submodule(name), nn.Linear)}
    repeated = {name: len(steps) for name, steps in calls.items() if name in linears and len(steps) > 1}
    return Trace([r for r in reads.values() if r.linears], first_run, set(calls), output, repeated)


def input_of(linear: nn.Module, run: Callable[[], Any]) -> Tensor | None:
    """Returns the tensor that `linear` reads in this call, if it runs at all; the rest of the pass is not run."""
    call = first_call(linear, run)
    return None if call is None else _first(*call)


@contextmanager
def restored(*modules: nn.Module) -> Iterator[None]:
    """Restores the modules' parameters at the end of the context."""
    saved = [(p, p.clone()) for module in modules for p in module.parameters()]
    try:
        yield
    finally:
        for p, value in saved:
            p.copy_(value)


def _can_absorb(module: nn.Module) -> bool:
    """Whether this is a linear, or a leaf with a 1-D weight: a norm, as far as can be told without its name."""
    weight = getattr(module, "weight", None)
    is_norm = isinstance(weight, nn.Parameter) and weight.dim() == 1 and not any(module.children())
    return is_norm or isinstance(module, nn.Linear)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def fresh(tree: Any) -> Any:
    """Returns a copy whose floating tensors are fp32, so that runs do not share changes in place."""
    return copy.deepcopy(tree, {id(t): _fresh_tensor(t) for t in tensors(tree)})


def _fresh_tensor(t: Tensor) -> Tensor:
    return t.detach().to(torch.float32 if t.is_floating_point() else t.dtype, copy=True)


def tensors(tree: Any) -> list[Tensor]:
    """Returns every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        return [t for v in tree for t in tensors(v)]
    return []
