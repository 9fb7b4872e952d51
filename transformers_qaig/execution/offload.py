"""Offloading: keeps the model on the CPU in forward passes, and copies to the device what computes.

A target is copied there whole, while it is quantized (`Offload.onload`). The modules around the targets are copied when
a forward pass calls them (`offloaded`), and the copies stay until `release`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .interceptor import map_tensors
from .onload import onload


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
            self._onloaded.enter_context(onload(module, self._device, copies=self._copies if stays else None))
            self._running = module
            return map_tensors(lambda tensor: tensor.to(self._device), (args, kwargs))

        def back(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._running is not module:
                return None
            self._running = None
            self._onloaded.close()
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
