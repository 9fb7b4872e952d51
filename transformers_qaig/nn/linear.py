"""`QAIGLinear`: the module that stands where an `nn.Linear` stood, holding packed integers instead of a weight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .hadamard import Rotation, rotate_back
from .packing import (
    ON_DISK,
    SCALE_DTYPES,
    num_groups,
    pack,
    pack_zero_point,
    packed_shapes,
)
from .reference import Weight, dequantize


class QAIGLinear(nn.Module):
    """A linear layer whose weight is packed to `bits` bits per value.

    With N = `out_features`, K = `in_features`, b = `bits` and G = K / `group_size` (1 if `group_size` is -1):

    | tensor              | dtype                   | shape               | holds                                      |
    | ------------------- | ----------------------- | ------------------- | ------------------------------------------ |
    | `weight_packed`     | int32                   | [N, ceil(K b / 32)] | codes 0 .. 2^b - 1, a bit stream along K   |
    | `weight_scale`      | float16 / bfloat16 / 32 | [N, G]              | step of each group                         |
    | `weight_zero_point` | int32                   | [ceil(N b / 32), G] | the code of 0, packed along N; None if sym |
    | `weight_shape`      | int64                   | [2]                 | (N, K)                                     |
    | `bias`              | compute dtype           | [N]                 | or None                                    |

    The weight is `(code - zero_point) * scale`, with zero point 2^(b - 1) if `sym`. With a `rotation` R that is W R,
    for the rotated input: the layer computes x R (W R)', and `dequantize` gives W.

    That is how they are made, saved and loaded. `prepare` puts the first three into the order the kernels of their
    device read fastest (`layout` tells it; shapes change, values do not), `unprepare` puts them back. A prepared layer
    saves and loads as any other, and follows moves to another device by itself.

    All of them are Parameters, integers included, because offloading moves parameters but not buffers. They are frozen
    when set, and `requires_grad_` reaches the bias only. A dtype cast (`.to(dtype)`, `.half()`, ...) reaches the bias
    only, too: casting scales would change the weight. `requires_grad_(True)` on a *parent* module is refused by torch
    itself, at the first integer it meets: enable gradients on the modules that can have them.

    Args:
        in_features (`int`): K.
        out_features (`int`): N.
        bias (`bool`): whether the layer has a bias.
        bits (`int`): 2 to 8.
        group_size (`int`): input channels that share one scale and zero point (a divisor of K), or -1: one per row.
        sym (`bool`, *optional*, defaults to `False`): no zero points.
        activation_bits (`int`, *optional*, defaults to 16): 8 rounds the input to 8 bits per token, on the fly: faster
            with many tokens, less accurate. May be changed at any time.
        rotation (`Rotation`, *optional*): block and seed of what the input is multiplied by first, see `hadamard.py`.
        dtype (`torch.dtype`, *optional*): of scales and bias; the default dtype of torch if None.
        device (`torch.device`, *optional*): where the tensors are made; `"meta"` works.

    Raises:
        ValueError: if a size, `bits`, `group_size`, `rotation` or `dtype` is out of range.
    """

    weight_packed: nn.Parameter
    weight_scale: nn.Parameter
    weight_zero_point: nn.Parameter | None
    weight_shape: nn.Parameter
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
        nn.Module.__init__(self)  # an embedding has another base class in between
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in SCALE_DTYPES:
            raise ValueError(f"dtype must be one of {SCALE_DTYPES}, got {dtype}")
        if activation_bits not in (8, 16):
            raise ValueError(f"activation_bits must be 8 or 16, got {activation_bits}")
        if rotation is not None:
            rotation.check(in_features)
        self.in_features, self.out_features, self.rotation = in_features, out_features, rotation
        self.bits, self.group_size, self.sym, self.activation_bits = bits, group_size, sym, activation_bits
        self.compute_dtype, self.layout = dtype, ON_DISK
        self.tied_to: tuple[QAIGLinear, ...] = ()  # modules that hold the same tensors, see `embedding.tie`
        for name, (shape, packed_dtype) in packed_shapes(out_features, in_features, bits, group_size, sym).items():
            self.register_parameter(name, _frozen(torch.zeros(shape, dtype=packed_dtype or dtype, device=device)))
        self.weight_shape = _frozen(torch.tensor([out_features, in_features], device=device))
        if sym:
            self.register_parameter("weight_zero_point", None)
        self.register_parameter(
            "bias", _frozen(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        )

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
            codes (`Tensor`): uint8 `[N, K]`, values 0 .. 2^bits - 1.
            scale (`Tensor`): float16, bfloat16 or float32 `[N, G]`; its dtype is the one that is stored.
            zero (`Tensor`, *optional*): uint8 `[N, G]`, values 0 .. 2^bits - 1; None for a symmetric layer.
            bias (`Tensor`, *optional*): floating `[N]`.
            bits (`int`): 2 to 8.
            group_size (`int`): a divisor of K, or -1.
            activation_bits (`int`, *optional*, defaults to 16), rotation (`Rotation`, *optional*): see the class.

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
        layer.weight_packed = _frozen(pack(codes, bits))
        layer.weight_scale = _frozen(scale.detach().clone(memory_format=torch.contiguous_format))
        layer.weight_shape = _frozen(torch.tensor([out_features, in_features], device=codes.device))
        if zero is not None:
            layer.weight_zero_point = _frozen(pack_zero_point(zero, bits))
        if bias is not None:
            layer.bias = _frozen(bias.detach().clone())
        check_packed(layer, cls.__name__)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        tensors = self._parameters  # attributes of a module are found slowly
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
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.ops.qaig.linear.default(*arguments)
        with torch._C._AutoDispatchBelowAutograd():  # autograd's Python rule costs as much as a small layer
            return torch.ops.qaig.linear.default(*arguments)

    def prepare(self) -> bool:
        """Puts the packed tensors into the order of the fastest kernels for their device, one layer's worth of memory.

        Nothing happens to a layer that is prepared already, that is offloaded (its tensors come and go), or for whose
        device, bits or installation there is no such order: it computes from the on-disk order.

        Returns:
            `bool`: whether the layer is prepared now.
        """
        if self.layout != ON_DISK:
            return True
        offloaded = any(_is_offloaded(module) for module in self._sharing())
        layout = ON_DISK if offloaded else ops.kernel_layout(self.weight_packed.device, self.bits)
        if layout == ON_DISK:
            return False
        packed, scale, zero = torch.ops.qaig.repack(*self._weight())
        self._replace_packed(packed, scale, zero, layout)
        return True

    def unprepare(self) -> None:
        """Puts the packed tensors back into the on-disk order."""
        if self.layout != ON_DISK:
            self._replace_packed(*self._on_disk(), ON_DISK)

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

    def _on_disk(self) -> tuple[Tensor, Tensor, Tensor]:
        """Packed words, scales and zero points of a prepared layer in the on-disk order."""
        packed, scale, zero = torch.ops.qaig.repack(*self._weight())
        return packed, scale, zero if self.sym else pack_zero_point(zero, self.bits)

    def _replace_packed(self, packed: Tensor, scale: Tensor, zero: Tensor, layout: int) -> None:
        tensors = {"weight_packed": packed, "weight_scale": scale, "weight_zero_point": None if self.sym else zero}
        parameters = {name: None if tensor is None else _frozen(tensor) for name, tensor in tensors.items()}
        for module in self._sharing():
            for name, parameter in parameters.items():
                setattr(module, name, parameter)
            module.layout = layout

    def _sharing(self) -> list["QAIGLinear"]:
        """This module and those that still hold the same tensors: offloading may have parted them."""
        return [self, *(other for other in self.tied_to if other.weight_packed is self.weight_packed)]

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight `[out_features, in_features]` this layer stands for, in `dtype` (None: the compute dtype)."""
        dtype = dtype or self.compute_dtype
        if self.rotation is None:
            return dequantize(self._weight(), dtype)
        return rotate_back(dequantize(self._weight(), torch.promote_types(dtype, torch.float32)), self.rotation).to(
            dtype
        )

    @property
    def weight(self) -> Tensor:
        """An empty tensor that tells the compute dtype and the device: some models cast their input to `weight.dtype`.

        It has no elements, so code that would compute with it fails at once. `dequantize` gives the values.
        """
        return self._stand_in(0)

    def _stand_in(self, *shape: int) -> Tensor:
        """A tensor without elements, marked so that a model's `_init_weights` leaves it alone."""
        tensor = torch.empty(shape, dtype=self.compute_dtype, device=self.weight_packed.device)
        if not torch.compiler.is_compiling():
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        return tensor

    def extra_repr(self) -> str:
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

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Freezes what it registers: Transformers' loader hands over every floating tensor as trainable."""
        if param is not None:
            param.requires_grad_(False)
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QAIGLinear":
        """Lets `fn` move the packed tensors, but not cast them. Another device gets the order of its own kernels."""
        probe = fn(self.weight)
        prepared = self.layout != ON_DISK
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

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As in `nn.Module`, always in the on-disk order."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.layout != ON_DISK:
            packed, scale, zero = self._on_disk()
            destination[prefix + "weight_packed"], destination[prefix + "weight_scale"] = packed, scale
            if not self.sym:
                destination[prefix + "weight_zero_point"] = zero

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """As in `nn.Module`, but a packed tensor of another dtype is an error: copying would cast it silently.

        A prepared layer is prepared again afterwards.
        """
        prepared = self.layout != ON_DISK
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


def get_linear(module: nn.Module, path: str) -> nn.Linear:
    """The `nn.Linear` at `path`.

    Raises:
        TypeError: something else is there.
    """
    linear = module.get_submodule(path)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{path} is a {type(linear).__name__}, not an nn.Linear")
    return linear


def check_packed(module: QAIGLinear, name: str) -> None:
    """Checks a loaded layer before it is prepared: dtypes, shapes and, where it can be read, content of its tensors.

    Tensors on the meta device (offloaded) have no content to check; their shapes and dtypes are checked.

    Args:
        module (`QAIGLinear`): the layer.
        name (`str`): its name in the model, for the message.

    Raises:
        ValueError: naming the first tensor that is missing, misshapen, wrongly typed, not finite, or inconsistent.
    """
    shapes = packed_shapes(module.out_features, module.in_features, module.bits, module.group_size, module.sym)
    for key, (shape, dtype) in shapes.items():
        tensor = getattr(module, key)
        if tensor is None:
            raise ValueError(f"{name}.{key} is missing")
        if tensor.dtype not in ((dtype,) if dtype else SCALE_DTYPES):
            raise ValueError(
                f"{name}.{key} has dtype {tensor.dtype}, expected {dtype or 'float16, bfloat16 or float32'}"
            )
        if tensor.shape != shape:
            raise ValueError(f"{name}.{key} has shape {tuple(tensor.shape)}, expected {shape}")
    if module.sym and module.weight_zero_point is not None:
        raise ValueError(f"{name}.weight_zero_point is there, but the layer is symmetric and has none")
    if module.weight_scale.device.type != "meta" and not module.weight_scale.isfinite().all():
        raise ValueError(f"{name}.weight_scale has values that are not finite")
    expected = [module.out_features, module.in_features]
    if module.weight_shape.device.type != "meta" and module.weight_shape.tolist() != expected:
        raise ValueError(f"{name}.weight_shape says {module.weight_shape.tolist()}, expected {expected}")


def _is_offloaded(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(h, "offload", False) for h in getattr(hook, "hooks", (hook,)))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
