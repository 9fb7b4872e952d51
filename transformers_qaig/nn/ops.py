"""The operators `torch.ops.qaig.*`: schema, checks, fake, autograd and autocast rules.

Python owns the schema. A backend adds its kernel for a device with `TORCH_LIBRARY_IMPL(qaig, <device>, m)`; wherever
none did, the plain-torch reference answers. All rules below hold for any backend. The CPU's kernels are compiled
(`csrc/`) and loaded when they are first needed.

`layout` says in which order the packed tensors are: `ON_DISK`, or `CPU_ORDER`, which is described in
`csrc/cpu/layout.h` and which `repack` makes and undoes.
"""

from typing import Any

import torch
from torch import Tensor

from .. import extension
from . import reference
from .packing import CPU_ORDER, ON_DISK, SCALE_DTYPES, packed_shapes

_LIBRARY = torch.library.Library("qaig", "DEF")
for _name in ("linear", "linear_reference"):
    _LIBRARY.define(
        f"{_name}(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, Tensor? signs, int out_features, "
        "int bits, int group_size, int activation_bits, int layout) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
_LIBRARY.define(
    "linear_many(Tensor x, Tensor[] packed, Tensor[] scale, Tensor?[] zero, Tensor?[] bias, int[] out_features, "
    "int[] bits, int[] group_size, int activation_bits, int layout) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "linear_grad_input(Tensor grad, Tensor packed, Tensor scale, Tensor? zero, Tensor? signs, int in_features, "
    "int bits, int group_size, int layout) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "repack(Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, int group_size, "
    "int layout) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "dequantize(Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, "
    "int group_size, int layout, int start, int stop) -> Tensor"
)
_LIBRARY.define(
    "embedding(Tensor ids, Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, "
    "int group_size, int layout) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

_ACTIVATION_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_AUTOCAST_DEVICES = ("cpu", "cuda")


def linear(x: Tensor, *args: Any) -> Tensor:
    """`qaig::linear` where no kernel is registered: the CPU's if they can be loaded now, else the reference."""
    if x.device.type == "cpu" and extension.load():
        return torch.ops.qaig.linear(x, *args)
    return linear_reference(x, *args)


def linear_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    signs: Tensor | None,
    out_features: int,
    bits: int,
    group_size: int,
    activation_bits: int,
    layout: int,
) -> Tensor:
    """`qaig::linear` in plain torch: x @ W.T + bias, with W as in `reference.dequantize`.

    Args:
        x (`Tensor`): `[..., K]`, float16, bfloat16, float32 or float64; K is read off this tensor.
        packed (`Tensor`): int32 `[N, ceil(K * bits / 32)]`.
        scale (`Tensor`): `[N, G]`, float16, bfloat16 or float32; G = K / group_size, or 1.
        zero (`Tensor`, *optional*): int32 `[ceil(N * bits / 32), G]`; None means 2^(bits - 1) everywhere (symmetric).
        bias (`Tensor`, *optional*): floating `[N]`.
        signs (`Tensor`, *optional*): random signs of a block-Hadamard transform of x; not available yet.
        out_features (`int`): N.
        bits (`int`): 2 to 8.
        group_size (`int`): input channels per group, or -1 for one group per row.
        activation_bits (`int`): 16: x is used as it is; 8: each token is rounded to 8 bits, as in
            `reference.round_activations`.
        layout (`int`): `ON_DISK`, or `CPU_ORDER` with the shapes that `repack` gives.

    Returns:
        `Tensor`: `[..., N]`, contiguous, dtype of x.

    Raises:
        ValueError: if an argument has a wrong shape, dtype or device (compiled kernels: RuntimeError).
        NotImplementedError: for `signs`, `activation_bits` or `layout` the reference cannot handle.
    """
    if activation_bits not in (8, 16):
        raise NotImplementedError(f"activation_bits={activation_bits} has no kernel here: use 16 or 8")
    _check_activation("x", x)
    _check_weight(x, packed, scale, zero, signs, out_features, x.shape[-1], bits, group_size, layout)
    if bias is not None:
        _check_tensor("bias", bias, (out_features,), _ACTIVATION_DTYPES, x)
    weight = reference.Weight(packed, scale, zero, out_features, x.shape[-1], bits, group_size, layout)
    return reference.linear(x, weight, bias, activation_bits)


def linear_many(x: Tensor, *args: Any) -> list[Tensor]:
    """`qaig::linear_many` where no kernel is registered: `qaig::linear` of one x by several layers, of any widths.

    Not differentiable. Arguments as in `linear_reference`, but for lists with an entry for each layer; x must not be
    float64 where compiled kernels answer.
    """
    if x.device.type == "cpu" and extension.load():
        return torch.ops.qaig.linear_many(x, *args)
    *layers, activation_bits, layout = args
    return [
        linear_reference(x, packed, scale, zero, bias, None, out_features, bits, group_size, activation_bits, layout)
        for packed, scale, zero, bias, out_features, bits, group_size in zip(*layers, strict=True)
    ]


def linear_grad_input(
    grad: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    signs: Tensor | None,
    in_features: int,
    bits: int,
    group_size: int,
    layout: int,
) -> Tensor:
    """`qaig::linear_grad_input`, reference kernel: grad @ W, `[..., N]` to `[..., K]`. Arguments as in `linear`."""
    _check_activation("grad", grad)
    _check_weight(grad, packed, scale, zero, signs, grad.shape[-1], in_features, bits, group_size, layout)
    weight = reference.Weight(packed, scale, zero, grad.shape[-1], in_features, bits, group_size, layout)
    return reference.linear_grad_input(grad, weight)


def embedding(ids: Tensor, *args: Any) -> Tensor:
    """`qaig::embedding` where no kernel is registered: the CPU's if they can be loaded now, else the reference."""
    if ids.device.type == "cpu" and extension.load():
        return torch.ops.qaig.embedding(ids, *args)
    return embedding_reference(ids, *args)


def embedding_reference(
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    out_features: int,
    in_features: int,
    bits: int,
    group_size: int,
    layout: int,
) -> Tensor:
    """`qaig::embedding` in plain torch: the rows W[ids] of a packed weight.

    Args:
        ids (`Tensor`): int32 or int64, any shape, values 0 .. N - 1.
        packed, scale, zero, out_features, bits, group_size, layout: the weight `[N, K]`, as in `linear_reference`.
        in_features (`int`): K.

    Returns:
        `Tensor`: float32 `[*ids.shape, K]`, exact: what `reference.dequantize` gives before it is rounded.

    Raises:
        ValueError: if an argument has a wrong shape, dtype or device (compiled kernels: RuntimeError).
        IndexError: an id that is no row (compiled kernels: RuntimeError; CUDA: an assertion on the device).
        NotImplementedError: for a `layout` the reference cannot read.
    """
    if ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ids must have dtype int32 or int64, got {ids.dtype}")
    _check_weight(ids, packed, scale, zero, None, out_features, in_features, bits, group_size, layout)
    weight = reference.Weight(packed, scale, zero, out_features, in_features, bits, group_size, layout)
    return reference.embedding(ids, weight)


def _check_activation(name: str, x: Tensor) -> None:
    if x.dim() == 0 or x.dtype not in _ACTIVATION_DTYPES:
        raise ValueError(
            f"{name} must be a floating tensor with at least one dimension, got {x.dtype} of shape {tuple(x.shape)}"
        )


def _check_weight(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    signs: Tensor | None,
    out_features: int,
    in_features: int,
    bits: int,
    group_size: int,
    layout: int,
) -> None:
    """Checks every tensor that comes from a checkpoint against the sizes, so that no kernel can read out of bounds."""
    if signs is not None:
        raise NotImplementedError("signs (a rotated input) has no kernel here: quantize without rotation")
    if layout == CPU_ORDER and x.device.type == packed.device.type == "cpu" and extension.load():
        return  # `qaig::dequantize`, through which the reference reads such a weight, checks it
    if layout != ON_DISK:
        raise NotImplementedError(
            f"layout={layout} belongs to another backend: the reference reads layout 0 (the on-disk order) only. A "
            "layer in the CPU's order is brought to another device by `to`, which restores that order first"
        )
    shapes = packed_shapes(out_features, in_features, bits, group_size, sym=zero is None)
    _check_tensor("packed", packed, shapes["weight_packed"][0], (torch.int32,), x)
    _check_tensor("scale", scale, shapes["weight_scale"][0], SCALE_DTYPES, x)
    if zero is not None:
        _check_tensor("zero", zero, shapes["weight_zero_point"][0], (torch.int32,), x)


def _check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], x: Tensor
) -> None:
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must have dtype {allowed}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(
            f"{name} must have shape {shape}, got {tuple(tensor.shape)}: the packed weight does not match its layer "
            "(in_features, out_features, bits, group_size)"
        )
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} but the input is on {x.device}: move both to one device")


_LIBRARY.impl("linear", linear, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_reference", linear_reference, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_many", linear_many, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_grad_input", linear_grad_input, "CompositeExplicitAutograd")
_LIBRARY.impl("embedding", embedding, "CompositeExplicitAutograd")


@torch.library.register_fake("qaig::linear", lib=_LIBRARY)
def _linear_fake(x: Tensor, packed: Tensor, *args: Any) -> Tensor:
    *tensors, out_features, _, _, _, _ = args
    _check_devices(x, packed, *tensors)
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.register_fake("qaig::linear_many", lib=_LIBRARY)
def _linear_many_fake(x: Tensor, packed: list[Tensor], *args: Any) -> list[Tensor]:
    scale, zero, bias, out_features, *_ = args
    _check_devices(x, *packed, *scale, *zero, *bias)
    return [x.new_empty(*x.shape[:-1], size) for size in out_features]


@torch.library.register_fake("qaig::linear_grad_input", lib=_LIBRARY)
def _linear_grad_input_fake(grad: Tensor, packed: Tensor, *args: Any) -> Tensor:
    *tensors, in_features, _, _, _ = args
    _check_devices(grad, packed, *tensors)
    return grad.new_empty(*grad.shape[:-1], in_features)


@torch.library.register_fake("qaig::embedding", lib=_LIBRARY)
def _embedding_fake(ids: Tensor, packed: Tensor, *args: Any) -> Tensor:
    scale, zero, _, in_features, *_ = args
    _check_devices(ids, packed, scale, zero)
    return scale.new_empty(*ids.shape, in_features, dtype=torch.float32)


def _check_devices(x: Tensor, *tensors: Tensor | None) -> None:
    """One meta tensor routes a call here: without this, weights never loaded would answer with uninitialised memory."""
    for tensor in tensors:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"a packed tensor is on {tensor.device} but the input is on {x.device}")


def _save_for_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, scale, zero, bias, signs, _, bits, group_size, _, layout = inputs
    ctx.save_for_backward(packed, scale, zero, signs)
    ctx.in_features, ctx.bits, ctx.group_size, ctx.layout = x.shape[-1], bits, group_size, layout
    ctx.bias_dtype = None if bias is None else bias.dtype


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x and bias. The packed weight is a constant: neither its integers nor its scales have one."""
    packed, scale, zero, signs = ctx.saved_tensors
    if ctx.needs_input_grad[2]:
        raise NotImplementedError(
            "scale requires a gradient, but a packed weight is not trainable: call scale.requires_grad_(False), "
            "and train an adapter beside the layer"
        )
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.qaig.linear_grad_input(
            grad, packed, scale, zero, signs, ctx.in_features, ctx.bits, ctx.group_size, ctx.layout
        )
    if ctx.needs_input_grad[4]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=ctx.bias_dtype)
    return (grad_x, None, None, None, grad_bias, *[None] * 6)


def _save_for_grad_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, packed, scale, zero, signs, _, bits, group_size, layout = inputs
    ctx.save_for_backward(packed, scale, zero, signs)
    ctx.out_features, ctx.bits, ctx.group_size, ctx.layout = grad.shape[-1], bits, group_size, layout


def _grad_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """grad @ W is linear in grad, so its own gradient (second derivatives) is the forward map without a bias."""
    packed, scale, zero, signs = ctx.saved_tensors
    out = torch.ops.qaig.linear(
        grad, packed, scale, zero, None, signs, ctx.out_features, ctx.bits, ctx.group_size, 16, ctx.layout
    )
    return (out, *[None] * 8)


torch.library.register_autograd("qaig::linear", _linear_backward, setup_context=_save_for_linear, lib=_LIBRARY)
torch.library.register_autograd(
    "qaig::linear_grad_input", _grad_input_backward, setup_context=_save_for_grad_input, lib=_LIBRARY
)


def _linear_autocast(x: Tensor, *args: Any) -> Tensor:
    """Casts x alone: `torch.library.register_autocast` would cast the scales too and change the weight."""
    device_type = x.device.type
    if x.is_floating_point() and x.dtype != torch.float64:  # torch's own rules leave float64 alone, too
        x = x.to(torch.get_autocast_dtype(device_type))
    with torch.autocast(device_type, enabled=False):
        return torch.ops.qaig.linear(x, *args)


for _device in _AUTOCAST_DEVICES:
    _LIBRARY.impl("linear", _linear_autocast, f"Autocast{_device.upper()}")
