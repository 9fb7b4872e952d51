"""`QAIGLinear`: replaces an `nn.Linear`; it holds packed integers instead of a weight."""

import torch
from torch import Tensor, nn

from ..formats.checks import check_input
from ..formats.hadamard import rotate_back
from ..formats.packing import num_groups, pack, pack_zero_point
from ..formats.scheme import Rotation, WeightScheme
from .checks import check_packed
from .forward_mode import is_active
from .packed_module import PackedModule, frozen


class QAIGLinear(PackedModule):
    """A linear layer whose weight is packed to `bits` bits per value.

    Its tensors are those of [`PackedModule`], with K input and N output features, and `bias` `[N]` in the compute
    dtype, or None. `requires_grad_` and a dtype cast reach the bias alone.

    With a `rotation` R the packed weight is W R, for the rotated input: the layer computes x R (W R)', and `dequantize`
    returns W.

    Args:
        in_features: K.
        out_features: N.
        bias: whether the layer has a bias.
        bits: 2 to 8.
        group_size: input channels that share one scale and zero point (a divisor of K), or -1: one per row.
        sym: whether the grid is symmetric, without zero points.
        activation_bits: 8 rounds the input to 8 bits per token on the fly, which is faster with many tokens and less
            accurate; 16 does not. May be changed at any time.
        rotation: block and seed of the rotation of the input, see `hadamard.py`; None for no rotation.
        dtype: of scales and bias; None for torch's default dtype.
        device: where the tensors are made; `"meta"` works.

    Raises:
        ValueError: a size, `bits`, `group_size`, `rotation` or `dtype` is out of range.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        *,
        bits: int,
        group_size: int,
        sym: bool = False,
        activation_bits: int = 16,
        rotation: Rotation | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            in_features, out_features, bits=bits, group_size=group_size, sym=sym, dtype=dtype, device=device
        )
        if activation_bits not in (8, 16):
            raise ValueError(f"activation_bits must be 8 or 16, got {activation_bits}")
        if rotation is not None:
            rotation.check(in_features)
        self.activation_bits, self.rotation = activation_bits, rotation
        self.register_parameter(
            "bias", frozen(torch.zeros(out_features, dtype=self.compute_dtype, device=device)) if bias else None
        )

    @classmethod
    def like(
        cls,
        linear: nn.Linear,
        scheme: WeightScheme,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "QAIGLinear":
        """Makes a layer without content in the place of `linear`, for its weight stored as `scheme` says.

        Args:
            linear: its sizes, and its bias or none.
            scheme: bits, groups, rotation and activation bits.
            device: of the packed tensors; None for that of `linear`.
            dtype: of the scales; None for that of `linear`.

        Raises:
            ValueError: `linear` cannot be stored so.
        """
        bias, dtype = linear.bias is not None, dtype or linear.weight.dtype
        device = linear.weight.device if device is None else device
        return cls.from_scheme(linear.in_features, linear.out_features, scheme, bias, device=device, dtype=dtype)

    @classmethod
    def from_scheme(
        cls,
        in_features: int,
        out_features: int,
        scheme: WeightScheme,
        bias: bool = False,
        *,
        device: torch.device | str | None = "meta",
        dtype: torch.dtype | None = None,
    ) -> "QAIGLinear":
        """Makes a layer without content for a weight stored as `scheme` says.

        Args:
            in_features: K.
            out_features: N.
            scheme: bits, groups, rotation and activation bits.
            bias: whether the layer has a bias.
            device: of its tensors.
            dtype: of the scales; None for torch's default dtype.

        Raises:
            ValueError: a weight of these sizes cannot be stored so.
        """
        return cls(
            in_features, out_features, bias, bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym,
            activation_bits=scheme.activation_bits, rotation=scheme.rotation, dtype=dtype, device=device,
        )  # fmt: skip

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bias: Tensor | None = None,
        *,
        bits: int,
        group_size: int,
        activation_bits: int = 16,
        rotation: Rotation | None = None,
    ) -> "QAIGLinear":
        """Builds a layer from quantized values.

        Args:
            codes: uint8 `[N, K]`, values 0 to 2^bits - 1.
            scale: float16, bfloat16 or float32 `[N, G]`, stored in this dtype.
            zero: uint8 `[N, G]`, values 0 to 2^bits - 1; None for a symmetric layer.
            bias: floating `[N]`, or None.
            bits: 2 to 8.
            group_size: a divisor of K, or -1.
            activation_bits: 8 or 16, see the class.
            rotation: of the input, see the class; None for no rotation.

        Raises:
            ValueError: naming the tensor whose dtype, shape or values do not fit.
        """
        if codes.dim() != 2:
            raise ValueError(f"codes must have shape [out_features, in_features], got {tuple(codes.shape)}")
        out_features, in_features = codes.shape
        layer = cls(
            in_features, out_features, False, bits=bits, group_size=group_size, sym=zero is None,
            activation_bits=activation_bits, rotation=rotation, dtype=scale.dtype, device="meta",
        )  # fmt: skip
        for name, tensor in (("scale", scale), ("zero", zero)):
            shape = (out_features, num_groups(in_features, group_size))
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if bias is not None and (bias.shape != (out_features,) or not bias.is_floating_point()):
            raise ValueError(f"bias must be floating of shape ({out_features},), got {bias.dtype} {tuple(bias.shape)}")
        layer.weight_packed = frozen(pack(codes, bits))
        layer.weight_scale = frozen(scale.detach().clone(memory_format=torch.contiguous_format))
        layer.weight_shape = frozen(torch.tensor([out_features, in_features], device=codes.device))
        if zero is not None:
            layer.weight_zero_point = frozen(pack_zero_point(zero, bits))
        if bias is not None:
            layer.bias = frozen(bias.detach().clone())
        check_packed(layer, cls.__name__)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies the input by the packed weight and adds the bias.

        Args:
            x: `[..., in_features]`, float16, bfloat16, float32 or float64.

        Returns:
            `[..., out_features]` in the dtype of x.

        Raises:
            ValueError: x is no tensor, or has another width.
        """
        if type(x) is not Tensor or x.is_nested or x.shape[-1:] != (self.in_features,):
            check_input(x, self.in_features)  # a call costs as much as the whole condition
        tensors = self._parameters  # attribute lookup on a module is slow
        arguments = (
            x,
            tensors["weight_packed"],
            tensors["weight_scale"],
            tensors["weight_zero_point"],
            tensors["bias"],
            *(self.rotation or (0, 0)),
            self.out_features,
            self.bits,
            self.group_size,
            self.activation_bits,
            self.layout,
        )
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_active():
            return torch.ops.qaig.linear.default(*arguments)
        with torch._C._AutoDispatchBelowAutograd():  # autograd's Python rule costs as much as a small layer
            return torch.ops.qaig.linear.default(*arguments)

    def product(self, x: Tensor) -> Tensor:
        """Multiplies the input by the packed weight, without a bias and without rounding the input to 8 bits.

        Args:
            x: `[..., in_features]`, floating.

        Returns:
            `[..., out_features]` in the dtype of x.
        """
        packed, scale, zero, size, _, *format, layout = self._weight()
        rotation = self.rotation or (0, 0)
        return torch.ops.qaig.linear.default(x, packed, scale, zero, None, *rotation, size, *format, 16, layout)

    def row_squares(self) -> Tensor:
        """Returns the sum of squares of each row of the weight, float32 `[out_features]`, without a dense copy."""
        return torch.cat([rows.square().sum(1) for _, _, rows in self._weight().rows(torch.float32)])

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """Makes an `nn.Linear` from the dequantized weight.

        Args:
            dtype: of weight and bias; None for the compute dtype.
        """
        weight = self.dequantize(dtype)
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().to(weight.dtype, copy=True))
        return linear.train(self.training)

    @property
    def scheme(self) -> WeightScheme:
        """How this layer stores its weight and transforms its input."""
        return WeightScheme(self.bits, self.group_size, self.sym, self.rotation, self.activation_bits)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the dequantized weight `[out_features, in_features]` in `dtype` (None: the compute dtype)."""
        if self.rotation is None:
            return super().dequantize(dtype)
        dtype = dtype or self.compute_dtype
        rotated = super().dequantize(torch.promote_types(dtype, torch.float32))
        return rotate_back(rotated, self.rotation).to(dtype)

    def extra_repr(self) -> str:
        """Sizes and format, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"bits={self.bits}, group_size={self.group_size}, sym={self.sym}, activation_bits={self.activation_bits}"
            + (f", rotation={tuple(self.rotation)}" if self.rotation else "")
        )

    def requires_grad_(self, requires_grad: bool = True) -> "QAIGLinear":
        """Makes the bias trainable or not; the packed tensors are never trainable."""
        if self.bias is not None:
            self.bias.requires_grad_(requires_grad)
        return self


def get_linear(module: nn.Module, path: str) -> nn.Linear:
    """Returns the `nn.Linear` at `path`.

    Args:
        module: that holds it.
        path: of the linear in `module`.

    Raises:
        TypeError: something else is there.
    """
    linear = module.get_submodule(path)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{path} is a {type(linear).__name__}, not an nn.Linear")
    return linear
