"""`PackedTensors`: preserves a module's packed integers through moves, casts and files, whatever their layout."""

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..formats.packing import CHECKPOINT_LAYOUT
from ..utils.old_names import warn_of_old_name

_order_lock = threading.RLock()  # one for all modules: some share their tensors, and a module's own could not be copied
_Method = TypeVar("_Method", bound=Callable[..., Any])


def one_thread_at_a_time(method: _Method) -> _Method:
    """Locks a method that changes the layout of packed tensors, or reads them together with `layout`."""

    @functools.wraps(method)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _order_lock:
            return method(*args, **kwargs)

    return locked  # type: ignore[return-value]


class PackedTensors(nn.Module):
    """The base of all packed modules: what moves, casts and files do to their tensors.

    Packed tensors are frozen Parameters, integers included, because offloading moves parameters but not buffers. A
    dtype cast does not reach them: casting scales would change the weight. Files always hold the checkpoint layout.
    """

    layout: int
    """The layout of the packed tensors."""
    compute_dtype: torch.dtype
    """The dtype of what the module computes, if its input does not say it."""

    @property
    def device(self) -> torch.device:
        """The device of the packed tensors."""
        return self.get_parameter(next(iter(self._packed_names()))).device

    @property
    def is_offloaded(self) -> bool:
        """Whether the packed tensors are not in memory."""
        return self.device.type == "meta"

    def to_kernel_layout(self) -> bool:
        """Converts the packed tensors to the layout of the device's kernels, and returns whether they are in it now."""
        raise NotImplementedError

    def to_checkpoint_layout(self) -> None:
        """Converts the packed tensors back to the checkpoint layout."""
        raise NotImplementedError

    def prepare(self) -> bool:
        """`to_kernel_layout`, as an earlier version called it."""
        warn_of_old_name("prepare()", "to_kernel_layout()")
        return self.to_kernel_layout()

    def unprepare(self) -> None:
        """`to_checkpoint_layout`, as an earlier version called it."""
        warn_of_old_name("unprepare()", "to_checkpoint_layout()")
        self.to_checkpoint_layout()

    def _packed_names(self) -> Iterable[str]:
        """Returns the names of the packed tensors that there are."""
        raise NotImplementedError

    def _in_checkpoint_layout(self) -> dict[str, Tensor]:
        """Returns by name the packed tensors whose layout changes, in the checkpoint layout."""
        raise NotImplementedError

    def _stand_in(self, *shape: int) -> Tensor:
        """Makes a tensor without elements, marked so that a model's `_init_weights` leaves it alone."""
        tensor = torch.empty(shape, dtype=self.compute_dtype, device=self.device)
        if not torch.compiler.is_compiling():
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        return tensor

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Freezes the parameter that it registers: Transformers' loader passes every floating tensor as trainable."""
        if param is not None:
            param.requires_grad_(False)
        super().register_parameter(name, param)

    @one_thread_at_a_time
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedTensors":
        """Applies `fn` to move the packed tensors but not to cast them; a new device gets its kernels' layout."""
        probe = fn(self._stand_in(0))
        in_kernel_layout = self.layout != CHECKPOINT_LAYOUT
        if in_kernel_layout and probe.device != self.device:
            self.to_checkpoint_layout()
        packed = {id(self._parameters[name]) for name in self._packed_names()}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in packed and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        super()._apply(move, recurse)
        self.compute_dtype = probe.dtype if probe.dtype.is_floating_point else self.compute_dtype
        if in_kernel_layout:
            self.to_kernel_layout()
        return self

    @one_thread_at_a_time
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Saves as `nn.Module` does, always in the checkpoint layout."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.layout != CHECKPOINT_LAYOUT:
            for name, tensor in self._in_checkpoint_layout().items():
                destination[prefix + name] = tensor

    @one_thread_at_a_time
    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Loads as `nn.Module` does, but a packed tensor of another dtype is an error: copying would cast it silently.

        A module in a kernel layout is in one again afterwards.
        """
        in_kernel_layout = self.layout != CHECKPOINT_LAYOUT
        self.to_checkpoint_layout()
        for name in self._packed_names():
            value, own = state_dict.get(prefix + name), self._parameters[name]
            if value is not None and own is not None and value.dtype != own.dtype:
                error_msgs.append(f"{prefix}{name} has dtype {value.dtype}, but the layer was made for {own.dtype}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if in_kernel_layout and not error_msgs:
            self.to_kernel_layout()


def has_offload_hook(module: nn.Module) -> bool:
    """Whether Accelerate moves the module's tensors in and out."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(h, "offload", False) for h in getattr(hook, "hooks", (hook,)))


def frozen(tensor: Tensor) -> nn.Parameter:
    """Makes a Parameter without a gradient: integers cannot have one."""
    return nn.Parameter(tensor, requires_grad=False)
