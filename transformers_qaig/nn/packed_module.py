"""`PackedModule`: holds a weight as packed integers, and preserves them through moves, casts and files."""

import torch
from torch import Tensor, nn

from ..formats.packing import CHECKPOINT_LAYOUT, SCALE_DTYPES, pack_zero_point, packed_shapes
from ..formats.reference import Weight, dequantize
from . import ops
from .packed_tensors import PackedTensors, frozen, has_offload_hook, one_thread_at_a_time


class PackedModule(PackedTensors):
    """The base of [`QAIGLinear`] and [`QAIGEmbedding`]: a weight packed to `bits` bits per value.

    With N = `out_features` rows, K = `in_features` columns, b = `bits` and G = K / `group_size` (1 if that is -1):

    | tensor              | dtype                   | shape               | holds                                      |
    | ------------------- | ----------------------- | ------------------- | ------------------------------------------ |
    | `weight_packed`     | int32                   | [N, ceil(K b / 32)] | codes 0 to 2^b - 1, a bit stream along K   |
    | `weight_scale`      | float16 / bfloat16 / 32 | [N, G]              | step of each group                         |
    | `weight_zero_point` | int32                   | [ceil(N b / 32), G] | the code of 0, packed along N; None if sym |
    | `weight_shape`      | int64                   | [2]                 | (N, K)                                     |

    The weight is `(code - zero_point) * scale`, with zero point 2^(b - 1) if `sym`.

    This is the checkpoint layout, in which they are made, saved and loaded. `to_kernel_layout` converts the first
    three to the layout that their device's kernels read fastest. Then `layout` and the shapes change, but not the
    values. `to_checkpoint_layout` converts them back. In either layout a module saves and loads alike, and follows
    moves to another device by itself.

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

    @one_thread_at_a_time
    def to_kernel_layout(self) -> bool:
        """Converts the packed tensors to the layout of the device's fastest kernels; needs memory for one more layer.

        Threads may call it at the same time, but not while another one computes with the layer.

        Nothing happens in three cases, in which the layer computes from its present layout. It is there already; it
        is offloaded, so that its tensors come and go; or its device, bits or installation have no kernel layout.

        Returns:
            whether the layer is in it now.
        """
        if self.layout != CHECKPOINT_LAYOUT:
            return True
        offloaded = any(has_offload_hook(module) for module in self._sharing())
        layout = CHECKPOINT_LAYOUT if offloaded else ops.kernel_layout(self.weight_packed.device, self.bits)
        if layout == CHECKPOINT_LAYOUT:
            return False
        self._replace_packed(self._named(*torch.ops.qaig.repack(*self._weight())), layout)
        return True

    @one_thread_at_a_time
    def to_checkpoint_layout(self) -> None:
        """Converts the packed tensors back to the checkpoint layout."""
        if self.layout != CHECKPOINT_LAYOUT:
            self._replace_packed(self._in_checkpoint_layout(), CHECKPOINT_LAYOUT)

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

    def _in_checkpoint_layout(self) -> dict[str, Tensor]:
        """Returns packed words, scales and zero points of a layer in a kernel layout, in the checkpoint layout."""
        packed, scale, zero = torch.ops.qaig.repack(*self._weight())
        return self._named(packed, scale, zero if self.sym else pack_zero_point(zero, self.bits))

    def _named(self, packed: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
        named = {"weight_packed": packed, "weight_scale": scale}
        return named if self.sym else {**named, "weight_zero_point": zero}

    def _replace_packed(self, tensors: dict[str, Tensor], layout: int) -> None:
        parameters = {name: frozen(tensor) for name, tensor in tensors.items()}
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

    def requires_grad_(self, requires_grad: bool = True) -> "PackedModule":
        """Does nothing: packed tensors are never trainable."""
        return self

    def _packed_names(self) -> list[str]:
        return [name for name in self._parameters if name != "bias"]
