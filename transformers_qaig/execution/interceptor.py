"""Intercepts `block.forward`: a sample's forward pass stops there until the calibration loop passes in an output.

The forward runs as a greenlet on the one OS thread. PyTorch's modes (grad, inference, autocast) belong to the thread,
not to the greenlet, so they are swapped at every switch.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from .layer_inputs import LayerInputs, map_tensors
from .torch_state import Modes

T = TypeVar("T")


class Forward(greenlet):  # type: ignore[misc]  # greenlet has no types here
    """One sample's forward pass, and the block at which it is paused."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        blocks: Sequence[nn.Module],
        inputs_device: torch.device | str | None,
    ):
        super().__init__()
        self.index = -1
        """The last block reached."""
        self.call: LayerInputs | None = None
        """The call that is paused there; None while running and after the end."""
        self.index_of = {id(block): index for index, block in enumerate(blocks)}
        self.gr_context = copy_context()
        self._model, self._inputs, self._inputs_device = model, inputs, inputs_device
        self._modes = Modes.now()._replace(grad=False, inference=False)
        self._ending = False
        self._seen: dict[int, weakref.ref[Tensor]] = {}

    def live_tensors(self) -> list[Tensor]:
        """Lists the tensors of the present call, and those of earlier calls that the model still holds.

        Those are embeddings and masks, say.
        """
        kept = [tensor for seen in self._seen.values() if (tensor := seen()) is not None]
        return kept if self.call is None else kept + self.call.tensors

    def run(self) -> Any:
        """Runs the model on the sample's inputs, as the body of the greenlet."""
        return self._model(**self._inputs)

    def stop_at(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pauses the forward, from within; returns what it is resumed with as the block's output."""
        if self._ending:
            raise GreenletExit
        if index <= self.index:
            what = "a second time" if index == self.index else f"after block {self.index}"
            raise RuntimeError(
                f"block {index} is called {what}: `blocks` must be in the order in which they run, once each."
            )
        call = LayerInputs(args, kwargs)
        device = next((tensor.device for tensor in call.tensors), None)
        alive = {key: seen for key, seen in self._seen.items() if seen() is not None}
        self._seen = alive | {id(tensor): weakref.ref(tensor) for tensor in call.tensors}
        self.index, self.call = index, call
        if self._inputs_device is not None:
            self.call = call.to(self._inputs_device, own_caches=False)
        del call
        assert self.parent is not None
        output = self.parent.switch()
        return output if device is None else map_tensors(lambda tensor: tensor.to(device), output)

    def run_on(self, switch: Callable[..., Any], *value: Any) -> Any:
        """Runs the forward to its next stop, in its own modes; called by the calibration loop."""
        self.call = None
        self.parent = getcurrent()
        ours = Modes.now()
        try:
            with torch.inference_mode(self._modes.inference):
                try:
                    self._modes.set()
                    return switch(*value)
                finally:
                    self._modes = Modes.now()
        finally:
            ours.set()

    def end(self) -> None:
        """Unwinds a paused forward."""
        self._ending = True
        if self:  # started and not dead
            self.run_on(self.throw, GreenletExit)


class ForwardInterceptor:
    """Replaces `block.forward` while any `PausedForwards` needs it; all that stop at the block share it."""

    NAMES = ("forward", "__deepcopy__")

    def __init__(self, block: nn.Module):
        self.block = block
        self.users = 0
        self.__wrapped__ = block.forward  # `inspect.signature(block.forward)` stays the block's

    @classmethod
    def at(cls, block: nn.Module) -> ForwardInterceptor:
        """Returns the block's interceptor, installed if it has none, with one user more."""
        interceptor = vars(block).get("forward")
        if not isinstance(interceptor, cls):
            interceptor = cls(block)
            interceptor._install()
        interceptor.users += 1
        return interceptor

    def release(self) -> None:
        """Removes one user; the last one removes the interceptor."""
        self.users -= 1
        if not self.users:
            self._remove()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Pauses a sample's forward; calls from elsewhere run the block."""
        caller = getcurrent()
        if isinstance(caller, Forward) and id(self.block) in caller.index_of:
            return caller.stop_at(caller.index_of[id(self.block)], args, kwargs)
        return self.__wrapped__(*args, **kwargs)

    def _copy_block(self, memo: dict[int, Any]) -> nn.Module:
        self._remove()
        try:
            return copy.deepcopy(self.block, memo)
        finally:
            self._install()

    def _install(self) -> None:
        attributes = vars(self.block)
        self._own = {name: attributes[name] for name in self.NAMES if name in attributes}
        attributes.update(forward=self, __deepcopy__=self._copy_block)

    def _remove(self) -> None:
        for name in self.NAMES:
            vars(self.block).pop(name, None)
        vars(self.block).update(self._own)
