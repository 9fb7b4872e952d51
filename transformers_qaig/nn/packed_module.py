"""`PackedModule`: holds a weight as packed integers, and preserves them through moves, casts and files."""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..formats.packing import CHECKPOINT_LAYOUT, SCALE_DTYPES, pack_zero_point, packed_shapes
from ..formats.reference import Weight, dequantize
from . import ops

_order_lock = threading.RLock()  # one for all modules: some share their tensors, and a module's own could not be copied
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _one_thread_at_a_time(method: _Method) -> _Method:
    """Locks a method that changes the layout of packed tensors, or reads them together with `layout`."""

    @functools.wraps(method)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _order_lock:
            return method(*args, **kwargs)

    return locked  # type: ignore[return-value]


class PackedModule(nn.Module):
    """The base of [`QAIGLinear`] and [`QAIGEmbedding`]: a weight packed to `bits` bits per value.

    With N = `out_features` rows, K = `in_features` columns, b = `bits` and G = K / `group_size` (1 if that is -1):

    | tensor              | dtype                   | shape               | holds                                      |
    | ------------------- | ----------------------- | ------------------- | ------------------------------------------ |
    | `weight_packed`     | int32                   | [N, ceil(K b / 32)] | codes 0 to 2^b - 1, a bit stream along K   |
    | `weight_scale`      | float16 / bfloat16 / 32 | [N, G]              | step of each group                         |
    | `weight_zero_point` | int32                   | [ceil(N b / 32), G] | the code of 0, packed along N; None if sym |
    | `weight_shape`      | int64                   | [2]                 | (N, K)                                     |

    The weight is `(code - zero_point) * scale`, with zero point 2^(b - 1) if `sym`.

    This is the checkpoint layout, in which they are made, saved and loaded. `prepare` converts the first three to the
    layout that their device's kernels read fastest. Then `layout` and the shapes change, but not the values.
    `unprepare` converts them back. A prepared module saves and loads as any other, and follows moves to another device
    by itself.

    All of them are Parameters, integers included, because offloading moves parameters but not buffers. They are frozen
    when set, and never trainable. A dtype cast (`.to(dtype)`, `.half()`, ...) does not reach them: casting scales would
    change the weight. torch itself refuses `requires_grad_(True)` on a *parent* module, at the first integer it meets.
    Enable gradients on the modules that can have them.

    Args:
        in_features: K.
        out_features: N.
        bits: 2 to 8.
        group_size: columns that share one scale and zero point (a divisor of K), or -1: one per row.
        sym: whether the grid is symmetric, without zero points.
        dtype: of the scales; None for torch's default dtype.
        device: where the tensors are made; `"meta"` works.

    Raises:
        ValueError: a size, `bits`, `group_size` or `dtype` is out of range.
    """

    weight_packed: nn.Parameter
    weight_scale: nn.Parameter
    weight_zero_point: nn.Parameter | None
    weight_shape: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        group_size: int,
        sym: bool,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        nn.Module.__init__(self)  # an embedding has another base class in between
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in SCALE_DTYPES:
            raise ValueError(f"dtype must be one of {SCALE_DTYPES}, got {dtype}")
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size, self.sym = bits, group_size, sym
        self.compute_dtype, self.layout = dtype, CHECKPOINT_LAYOUT
        self.tied_to: tuple[PackedModule, ...] = ()  # modules that hold the same tensors, see `embedding.tie`
        for name, (shape, packed_dtype) in packed_shapes(out_features, in_features, bits, group_size, sym).items():
            self.register_parameter(name, frozen(torch.zeros(shape, dtype=packed_dtype or dtype, device=device)))
        self.weight_shape = frozen(torch.tensor([out_features, in_features], device=device))
        if sym:
            self.register_parameter("weight_zero_point", None)

    @_one_thread_at_a_time
    def prepare(self) -> bool:
        """Converts the packed tensors to the layout of the device's fastest kernels; needs memory for one more layer.

        Threads may call it at the same time, but not while another one computes with the layer.

        Nothing happens in three cases, in which the layer computes from its present layout. It is prepared already; it
        is offloaded, so that its tensors come and go; or its device, bits or installation have no kernel layout.

        Returns:
            whether the layer is prepared now.
        """
        if self.layout != CHECKPOINT_LAYOUT:
            return True
        offloaded = any(_is_offloaded(module) for module in self._sharing())
        layout = CHECKPOINT_LAYOUT if offloaded else ops.kernel_layout(self.weight_packed.device, self.bits)
        if layout == CHECKPOINT_LAYOUT:
            return False
        packed, scale, zero = torch.ops.qaig.repack(*self._weight())
        self._replace_packed(packed, scale, zero, layout)
        return True

    @_one_thread_at_a_time
    def unprepare(self) -> None:
        """Converts the packed tensors back to the checkpoint layout."""
        if self.layout != CHECKPOINT_LAYOUT:
            self._replace_packed(*self._in_checkpoint_layout(), CHECKPOINT_LAYOUT)

    def _weight(self) -> Weight:
        return Weight(
            self.weight_packed,
            self.weight_scale,
            self.weight_zero_point,
            self.out_features,
            self.in_features,
            self.bits,
            self.group_size,
            self.layout,
        )

    def _in_checkpoint_layout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns packed words, scales and zero points of a prepared layer in the checkpoint layout."""
        packed, scale, zero = torch.ops.qaig.repack(*self._weight())
        return packed, scale, zero if self.sym else pack_zero_point(zero, self.bits)

    def _replace_packed(self, packed: Tensor, scale: Tensor, zero: Tensor, layout: int) -> None:
        tensors = {"weight_packed": packed, "weight_scale": scale, "weight_zero_point": None if self.sym else zero}
        parameters = {name: None if tensor is None else frozen(tensor) for name, tensor in tensors.items()}
        for module in self._sharing():
            for name, parameter in parameters.items():
                setattr(module, name, parameter)
            module.layout = layout

    def _sharing(self) -> list["PackedModule"]:
        """Returns this module and those that still hold the same tensors: offloading may have parted them."""
        return [self, *(other for other in self.tied_to if other.weight_packed is self.weight_packed)]

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the dequantized weight `[out_features, in_features]` in `dtype` (None: the compute dtype)."""
        return dequantize(self._weight(), dtype or self.compute_dtype)

    @property
    def weight(self) -> Tensor:
        """An empty tensor that shows the compute dtype and the device: some models cast their input to `weight.dtype`.

        It has no elements, so code that computes with it fails at once. `dequantize` returns the values.
        """
        return self._stand_in(0)

    def _stand_in(self, *shape: int) -> Tensor:
        """Makes a tensor without elements, marked so that a model's `_init_weights` leaves it alone."""
        tensor = torch.empty(shape, dtype=self.compute_dtype, device=self.weight_packed.device)
        if not torch.compiler.is_compiling():
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        return tensor

    def requires_grad_(self, requires_grad: bool = True) -> "PackedModule":
        """Does nothing: packed tensors are never trainable."""
        return self

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Freezes the parameter that it registers: Transformers' loader passes every floating tensor as trainable."""
        if param is not None:
            param.requires_grad_(False)
        super().register_parameter(name, param)

    @_one_thread_at_a_time
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedModule":
        """Applies `fn` to move the packed tensors but not to cast them; a new device gets its kernels' layout."""
        probe = fn(self.weight)
        prepared = self.layout != CHECKPOINT_LAYOUT
        if prepared and probe.device != self.weight_packed.device:
            self.unprepare()
        packed = {id(self._parameters[name]) for name in self._packed_names()}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in packed and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        super()._apply(move, recurse)
        self.compute_dtype = probe.dtype if probe.dtype.is_floating_point else self.compute_dtype
        if prepared:
            self.prepare()
        return self

    @_one_thread_at_a_time
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Saves as `nn.Module` does, always in the checkpoint layout."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.layout != CHECKPOINT_LAYOUT:
            packed, scale, zero = self._in_checkpoint_layout()
            destination[prefix + "weight_packed"], destination[prefix + "weight_scale"] = packed, scale
            if not self.sym:
                destination[prefix + "weight_zero_point"] = zero

    @_one_thread_at_a_time
    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Loads as `nn.Module` does, but a packed tensor of another dtype is an error: copying would cast it silently.

        A prepared layer is prepared again afterwards.
        """
        prepared = self.layout != CHECKPOINT_LAYOUT
        self.unprepare()
        for name in self._packed_names():
            value, own = state_dict.get(prefix + name), self._parameters[name]
            if value is not None and own is not None and value.dtype != own.dtype:
                error_msgs.append(f"{prefix}{name} has dtype {value.dtype}, but the layer was made for {own.dtype}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prepared and not error_msgs:
            self.prepare()

    def _packed_names(self) -> list[str]:
        return [name for name in self._parameters if name != "bias"]


def _is_offloaded(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(h, "offload", False) for h in getattr(hook, "hooks", (hook,)))


def frozen(tensor: Tensor) -> nn.Parameter:
    """Makes a Parameter without a gradient: integers cannot have one."""
    return nn.Parameter(tensor, requires_grad=False)
