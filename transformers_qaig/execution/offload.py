"""Offloading: the model stays on the CPU, and what computes is copied to the device. No other file moves weights.

`onload` copies a module's weights for as long as its context lasts. Three callers differ in when they enter it:
`Offload.onload` for a target, `offloaded` by hooks for the modules around the targets, and `sequential_onload` for
backward passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layer_inputs import map_tensors, with_own_caches


@contextmanager
def onload(
    module: nn.Module,
    device: torch.device | str | None,
    *,
    dtype: torch.dtype | None = None,
    without: Collection[nn.Module] = (),
    copies: dict[int, Tensor] | None = None,
) -> Iterator[None]:
    """Makes a module's weights hold copies of their values on `device`, within the context.

    At its end each weight has its own values again, on its own device. So a change of the copies is lost. What the
    module got meanwhile, such as rotary frequencies for a longer text, moves to where the others are.

    Args:
        module: its parameters and buffers.
        device: None leaves each weight on its own.
        dtype: of the copies of floating weights; None for that of the weight.
        without: modules inside it that stay as they are.
        copies: by the id of a weight; those that are there are used, and new ones are put in. None frees every copy.

    Raises:
        ValueError: a weight has no data (`meta`).
    """
    homes: dict[int, tuple[Tensor, Tensor]] = {}
    copies = {} if copies is None else copies
    try:
        for tensor in _weights(module, without):
            if tensor.is_meta:
                raise ValueError(f"a weight on `meta` cannot be copied to {device}: load the model with its weights.")
            homes[id(tensor)] = tensor, tensor.data
            if id(tensor) not in copies:
                wanted = dtype if tensor.is_floating_point() else None
                copies[id(tensor)] = tensor.data.to(device or tensor.device, wanted)
            tensor.data = copies[id(tensor)]
        yield
    finally:
        home = next((values.device for _, values in homes.values()), None)
        for tensor in _weights(module, without):
            if id(tensor) not in homes and home is not None and not tensor.is_meta:
                tensor.data = tensor.data.to(home)
        for tensor, values in homes.values():
            tensor.data = values


def copies_of(
    module: nn.Module, device: torch.device | str | None, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Returns copies of a module's weights by name, for `torch.func.functional_call`.

    A backward pass needs them: autograd keeps a weight itself, which `onload` would have given back by then.

    Args:
        module: its parameters and buffers; they stay as they are.
        device: None leaves each weight on its own.
        dtype: of the copies of floating weights; None for that of the weight.
    """
    return {
        name: tensor.to(device or tensor.device, dtype if tensor.is_floating_point() else None)
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
    }


def _weights(module: nn.Module, without: Collection[nn.Module]) -> Iterator[Tensor]:
    """Yields each parameter and buffer once, except those of `without`."""
    left_out = {id(inner) for part in without for inner in part.modules()}
    seen: set[int] = set()
    for inner in module.modules():
        if id(inner) not in left_out:
            for tensor in chain(inner.parameters(recurse=False), inner.buffers(recurse=False)):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor


class Offload:
    """Modules of a model on the CPU that compute on a device.

    While a watched module runs, its weights and arguments are copies there; its output goes to the CPU.

    So the model's own code runs as on the CPU. A paused forward pass keeps nothing on the device, however many are
    paused. Only weights used since the last `release` stay on the device. Leaving the context ends all watching.

    Args:
        device: None, or the CPU, moves nothing.
    """

    def __init__(self, device: torch.device | str | None):
        self._device = None if device is None or torch.device(device).type == "cpu" else torch.device(device)
        self._copies: dict[int, Tensor] = {}
        self._running: nn.Module | None = None
        self._onloaded, self._watched = ExitStack(), ExitStack()

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._watched.close()
        self._onloaded.close()  # an interrupt, unlike an error, runs no hooks
        self._running = None
        self.release()

    def watch(self, module: nn.Module, *, stays: bool = True, on_call: Callable[[], None] | None = None) -> None:
        """Makes `module` compute on the device until the context is left.

        Args:
            module: calls no module in which a forward pass is paused; does not change its weights.
            stays: whether the copies stay there for the next call, or are dropped after each one.
            on_call: called before it computes.
        """

        def go(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if on_call is not None:
                on_call()
            if self._device is None or self._running is not None:  # in a module that is there already
                return None
            self._onloaded.enter_context(onload(module, self._device, copies=self._copies if stays else None))
            self._running = module
            return map_tensors(lambda tensor: tensor.to(self._device), (args, kwargs))

        def back(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._running is not module:
                return None
            self._running = None
            self._onloaded.close()
            return map_tensors(lambda tensor: tensor.cpu(), output)

        self._watched.callback(module.register_forward_pre_hook(go, prepend=True, with_kwargs=True).remove)
        self._watched.callback(module.register_forward_hook(back, always_call=True).remove)

    def release(self) -> None:
        """Drops the copies on the device; the next call makes them again."""
        self._copies.clear()

    def onload(self, module: nn.Module) -> AbstractContextManager[None]:
        """Copies `module` to the device within the context, after dropping the copies of others. See [`onload`]."""
        self.release()
        return nullcontext() if self._device is None else onload(module, self._device)


def offloaded(model: nn.Module, targets: Sequence[nn.Module], device: torch.device | str | None) -> Offload:
    """Makes the modules around `targets` (towers, projector, norms, head) compute on `device`, within the context.

    Embeddings do not: a lookup is no work, and their weight may be a gigabyte. See [`Offload.onload`] for targets.
    """
    memory = Offload(device)
    for module in _beside(model, {id(target) for target in targets}):
        memory.watch(module)
    return memory


def _beside(module: nn.Module, blocks: set[int]) -> Iterator[nn.Module]:
    """Yields the modules with weights, large and small, that neither are in a block nor hold one."""
    if id(module) in blocks:
        return
    has_weights = any(True for _ in (*module.parameters(), *module.buffers())) and not isinstance(module, nn.Embedding)
    if has_weights and blocks.isdisjoint(map(id, module.modules())):
        yield module
    for child in module.children():
        yield from _beside(child, blocks)


@contextmanager
def sequential_onload(
    model: nn.Module, blocks: Sequence[nn.Module], device: torch.device | str | None
) -> Iterator[None]:
    """Makes the model compute in float32 with one block at a time on `device`, within the context.

    A block's weights are copied there when it runs. For a backward pass only its inputs are kept, and it runs again.
    What is around the blocks (embeddings, towers, head) is copied for the whole context. So the device holds the parts
    around the blocks, one block, its activations for one batch, and each block's input.

    Args:
        model: its parameters need no gradients.
        blocks: run one after the other. Their own parameters stay where they are.
        device: None computes where the model is.
    """
    with ExitStack() as stack:
        stack.enter_context(onload(model, device, dtype=torch.float32, without=blocks))
        for block in blocks:
            stack.callback(_restore, block, vars(block).get("forward"))
            block.forward = _Onloaded(block, device)
        yield


def copy_to_device(sample: Mapping[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    """Copies one sample's inputs to `device`, where `sequential_onload` has the parts that read them.

    Args:
        sample: the model's inputs.
        device: None leaves them where they are.
    """
    return {k: v.to(device) if isinstance(v, torch.Tensor) and device is not None else v for k, v in sample.items()}


class _Onloaded:
    """Stands in for `block.forward`."""

    def __init__(self, block: nn.Module, device: torch.device | str | None):
        self._block, self._device, self._body = block, device, _Body(block)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._run(*args, **kwargs)
        before, runs = with_own_caches((args, kwargs)), itertools.count()

        def run(*args: Any, **kwargs: Any) -> Any:
            if next(runs):  # again, for the gradient: the model's own caches have its keys and values already
                args, kwargs = with_own_caches(before)
            return self._run(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        weights = copies_of(self._block, self._device, dtype=torch.float32)
        named = {f"block.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(self._body, named, args, kwargs)


class _Body(nn.Module):
    """Runs a block's own `forward` without the block's hooks, which its caller runs: some collect hidden states."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self._forward = block, block.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


def _restore(block: nn.Module, forward: Any) -> None:
    del block.forward
    if forward is not None:
        block.forward = forward
