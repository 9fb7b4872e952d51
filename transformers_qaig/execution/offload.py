"""Offloading: keeps the model on the CPU, and moves to the device what computes.

A target is moved there whole, while it is quantized (`onload`). The modules around the targets are copied there when a
forward pass calls them (`offloaded`), and stay until `release`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .interceptor import map_tensors


class Offload:
    """Modules of a model on the CPU that compute on a device.

    While a watched module runs, its weights and arguments are copies there; its output goes to the CPU.

    So the model's own code runs as on the CPU. A paused forward pass keeps nothing on the device, however many are
    paused. Only weights used since the last `release` stay on the device. Leaving the context ends all watching.

    Args:
        device: None, or the CPU, moves nothing.
    """

    def __init__(self, device: torch.device | str | None):
        self._target = device
        self._device = None if device is None or torch.device(device).type == "cpu" else torch.device(device)
        self._copies: dict[int, Tensor] = {}  # by the id of the model's own tensor
        self._homes: dict[int, tuple[Tensor, Tensor]] = {}  # the model's own tensor, and its values on the CPU
        self._running: nn.Module | None = None
        self._watched = ExitStack()

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._watched.close()
        for tensor, home in self._homes.values():  # an interrupt, unlike an error, runs no hooks
            tensor.data = home
        self._homes.clear()
        self._running = None
        self.release()

    def watch(self, module: nn.Module, *, stays: bool = True, on_call: Callable[[], None] | None = None) -> ExitStack:
        """Makes `module` compute on the device until the context, or the returned stack, is closed.

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
            self._running = module
            for tensor in _weights(module):
                self._homes[id(tensor)] = tensor, tensor.data
                if id(tensor) not in self._copies:
                    self._copies[id(tensor)] = tensor.data.to(self._device)
                tensor.data = self._copies[id(tensor)]
            return map_tensors(lambda tensor: tensor.to(self._device), (args, kwargs))

        def back(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._running is not module:
                return None
            self._running = None
            for tensor in _weights(module):
                # A tensor that was not there before: rotary frequencies may be made anew for a longer text.
                _, home = self._homes.pop(id(tensor), (tensor, None))
                tensor.data = tensor.data.cpu() if home is None else home
                if not stays:
                    self._copies.pop(id(tensor), None)
            return map_tensors(lambda tensor: tensor.cpu(), output)

        watching = ExitStack()
        watching.callback(module.register_forward_pre_hook(go, prepend=True, with_kwargs=True).remove)
        watching.callback(module.register_forward_hook(back, always_call=True).remove)
        self._watched.callback(watching.close)
        return watching

    def release(self) -> None:
        """Drops the copies on the device; the next call makes them again."""
        self._copies.clear()

    def onload(self, module: nn.Module) -> AbstractContextManager[None]:
        """Moves `module` to the device within the context, after dropping the copies of others. See [`onload`]."""
        self.release()
        return onload(module, self._target)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def offloaded(model: nn.Module, targets: Sequence[nn.Module], device: torch.device | str | None) -> Offload:
    """Makes the modules around `targets` (towers, projector, norms, head) compute on `device`, within the context.

    Embeddings do not: a lookup is no work, and their weight may be a gigabyte. A target is moved by [`Offload.onload`].
    """
    memory = Offload(device)
    for module in _beside(model, {id(target) for target in targets}):
        memory.watch(module)
    return memory


@contextmanager
def onload(module: nn.Module, device: torch.device | str | None) -> Iterator[None]:
    """Moves the parameters and buffers of a module to `device` within the context, and back at its end.

    Args:
        module: on one device, except for tensors that are already on `device` because they are tied to others there. It
            is moved, not copied; nothing happens if it is already there.
        device: None leaves the module where it is.

    Raises:
        ValueError: the module is spread over several devices, or has no data (`meta`).
    """
    target = None if device is None else torch.empty(0, device=device).device  # "cuda" → "cuda:0"
    devices = {tensor.device for tensor in _weights(module)}
    homes = devices - {target}
    if target is None or not homes:
        yield
        return
    if len(homes) > 1 or torch.device("meta") in devices:
        raise ValueError(
            f"a block on {', '.join(sorted(map(str, devices)))} cannot be moved to {target} and back: place each block "
            "as a whole on one device that holds data."
        )
    try:
        module.to(target)
        yield
    finally:
        module.to(homes.pop())


def _beside(module: nn.Module, blocks: set[int]) -> Iterator[nn.Module]:
    """Yields the modules with weights, large and small, that neither are in a block nor hold one."""
    if id(module) in blocks:
        return
    has_weights = any(True for _ in _weights(module)) and not isinstance(module, nn.Embedding)
    if has_weights and blocks.isdisjoint(map(id, module.modules())):
        yield module
    for child in module.children():
        yield from _beside(child, blocks)
