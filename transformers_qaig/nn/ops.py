"""The operators `torch.ops.qaig.*`: schema, checks, fake, autograd and autocast rules.

Python owns the schema. A backend adds its kernel for a device with `TORCH_LIBRARY_IMPL(qaig, <device>, m)`; wherever
none did, the plain-torch reference answers. All rules below hold for any backend. The CPU's kernels are compiled
(`csrc/`) and loaded when they are first needed.

`layout` says in which order the packed tensors are: `ON_DISK`, or `CPU_ORDER` or `CUDA_ORDER`, which are described in
`csrc/cpu/layout.h` and `csrc/cuda/layout.h`, and which `repack` makes and undoes.
"""

from typing import Any

import torch
from torch import Tensor

from .. import cuda, extension
from . import cuda_order, reference
from .checks import (
    ACTIVATION_DTYPES,
    check_activation,
    check_activation_bits,
    check_cuda_order,
    check_lists,
    check_on_disk,
    check_tensor,
    checked_rotation,
)
from .packing import CPU_ORDER, CUDA_ORDER, KERNEL_BITS, ON_DISK

_LIBRARY = torch.library.Library("qaig", "DEF")
for _name in ("linear", "linear_reference"):
    _LIBRARY.define(
        f"{_name}(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, int rotation_block, "
        "int rotation_seed, int out_features, int bits, int group_size, int activation_bits, int layout) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
_LIBRARY.define(
    "linear_many(Tensor x, Tensor[] packed, Tensor[] scale, Tensor?[] zero, Tensor?[] bias, int[] rotation_block, "
    "int[] rotation_seed, int[] out_features, int[] bits, int[] group_size, int activation_bits, int layout) "
    "-> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "linear_grad_input(Tensor grad, Tensor packed, Tensor scale, Tensor? zero, int rotation_block, int rotation_seed, "
    "int in_features, int bits, int group_size, int layout) -> Tensor",
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

_AUTOCAST_DEVICES = ("cpu", "cuda")


def linear(x: Tensor, *args: Any) -> Tensor:
    """`qaig::linear` where no kernel is registered: the device's if they can be loaded now, else the reference."""
    if _load_kernels(x.device) and extension.has_kernel("linear", x.device.type):
        return torch.ops.qaig.linear(x, *args)
    return linear_reference(x, *args)


def linear_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    rotation_block: int,
    rotation_seed: int,
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
        rotation_block (`int`), rotation_seed (`int`): x is rotated first, as in `hadamard.rotate`, and W is a weight
            for such an x: `linear` computes (x R) @ W.T + bias. Block 0: x is taken as it is, whatever the seed.
        out_features (`int`): N.
        bits (`int`): 2 to 8.
        group_size (`int`): input channels per group, or -1 for one group per row.
        activation_bits (`int`): 16: x is used as it is; 8: each token is rounded to 8 bits, as in
            `reference.round_activations`.
        layout (`int`): `ON_DISK`, or `CPU_ORDER` or `CUDA_ORDER` with the shapes that `repack` gives.

    Returns:
        `Tensor`: `[..., N]`, contiguous, dtype of x.

    Raises:
        ValueError: if an argument has a wrong shape, dtype or device (compiled kernels: RuntimeError).
        NotImplementedError: for an `activation_bits` or `layout` the reference cannot handle.
    """
    check_activation_bits(activation_bits)
    check_activation("x", x)
    _check_weight(x, packed, scale, zero, out_features, x.shape[-1], bits, group_size, layout)
    rotation = checked_rotation(rotation_block, rotation_seed, x.shape[-1])
    if bias is not None:
        check_tensor("bias", bias, (out_features,), ACTIVATION_DTYPES, x)
    weight = reference.Weight(packed, scale, zero, out_features, x.shape[-1], bits, group_size, layout)
    return reference.linear(x, weight, bias, rotation, activation_bits)


def linear_many(x: Tensor, *args: Any) -> list[Tensor]:
    """`qaig::linear_many` where no kernel is registered: `qaig::linear` of one x by several layers, of any widths.

    Not differentiable. Arguments as in `linear_reference`, but for lists with an entry for each layer; x must not be
    float64 where compiled kernels answer.
    """
    if _load_kernels(x.device) and extension.has_kernel("linear_many", x.device.type):
        return torch.ops.qaig.linear_many(x, *args)
    *layers, activation_bits, layout = args
    check_lists(*layers)
    results = []
    for packed, scale, zero, bias, block, seed, size, bits, group_size in zip(*layers, strict=True):
        arguments = packed, scale, zero, bias, block, seed, size, bits, group_size, activation_bits, layout
        results.append(linear_reference(x, *arguments))
    return results


def linear_grad_input(
    grad: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    rotation_block: int,
    rotation_seed: int,
    in_features: int,
    bits: int,
    group_size: int,
    layout: int,
) -> Tensor:
    """`qaig::linear_grad_input`, reference kernel: grad @ W R', `[..., N]` to `[..., K]`. Arguments as in `linear`."""
    check_activation("grad", grad)
    _check_weight(grad, packed, scale, zero, grad.shape[-1], in_features, bits, group_size, layout)
    rotation = checked_rotation(rotation_block, rotation_seed, in_features)
    weight = reference.Weight(packed, scale, zero, grad.shape[-1], in_features, bits, group_size, layout)
    return reference.linear_grad_input(grad, weight, rotation)


def embedding(ids: Tensor, *args: Any) -> Tensor:
    """`qaig::embedding` where no kernel is registered: the CPU's if they can be loaded now, else the reference."""
    if _load_kernels(ids.device) and extension.has_kernel("embedding", ids.device.type):
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
    if layout == CUDA_ORDER:
        check_cuda_order(ids, packed, scale, zero, out_features, in_features, bits, group_size)
    else:
        _check_weight(ids, packed, scale, zero, out_features, in_features, bits, group_size, layout)
    weight = reference.Weight(packed, scale, zero, out_features, in_features, bits, group_size, layout)
    return reference.embedding(ids, weight)


def kernel_layout(device: torch.device, bits: int) -> int:
    """The order that the kernels of a device read: `CPU_ORDER`, `CUDA_ORDER` or, where there are none, `ON_DISK`."""
    layout = {"cpu": CPU_ORDER, "cuda": CUDA_ORDER}.get(device.type, ON_DISK)
    if layout == ON_DISK or bits not in KERNEL_BITS or not _load_kernels(device):
        return ON_DISK
    return layout if extension.has_kernel("linear", device.type) else ON_DISK


def _load_kernels(device: torch.device) -> bool:
    if device.type == "cuda":
        return cuda.load(device)
    return device.type == "cpu" and extension.load()


def repack_cuda(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    out_features: int,
    in_features: int,
    bits: int,
    group_size: int,
    layout: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`qaig::repack` on CUDA devices: the on-disk order to `CUDA_ORDER`, or back. Arguments as in `cuda_order`.

    Raises:
        ValueError: if an argument has a wrong shape, dtype or device.
    """
    sizes = (out_features, in_features, bits, group_size)
    if bits not in KERNEL_BITS:
        raise ValueError(f"CUDA kernels have an order of their own for 2, 3, 4 and 8 bits, got {bits}")
    if layout == ON_DISK:
        check_on_disk(packed, packed, scale, zero, *sizes)
        return cuda_order.from_disk(packed, scale, zero, *sizes)
    if layout != CUDA_ORDER:
        raise ValueError(f"layout={layout} belongs to another backend: CUDA devices have 0 (on disk) and {CUDA_ORDER}")
    check_cuda_order(packed, packed, scale, zero, *sizes)
    return cuda_order.to_disk(packed, scale, zero, *sizes)


def _check_weight(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    out_features: int,
    in_features: int,
    bits: int,
    group_size: int,
    layout: int,
) -> None:
    """Checks every tensor that comes from a checkpoint against the sizes, so that no kernel can read out of bounds."""
    if layout != ON_DISK and x.device == packed.device and layout == kernel_layout(x.device, bits):
        return  # `qaig::dequantize`, through which the reference reads such a weight, checks it
    if layout != ON_DISK:
        raise NotImplementedError(
            f"layout={layout} belongs to another backend: the reference reads layout 0 (the on-disk order) only. A "
            "layer in a device's own order is brought to another device by `to`, which restores that order first"
        )
    check_on_disk(x, packed, scale, zero, out_features, in_features, bits, group_size)


_LIBRARY.impl("linear", linear, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_reference", linear_reference, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_many", linear_many, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_grad_input", linear_grad_input, "CompositeExplicitAutograd")
_LIBRARY.impl("embedding", embedding, "CompositeExplicitAutograd")
_LIBRARY.impl("repack", repack_cuda, "CUDA")


@torch.library.register_fake("qaig::linear", lib=_LIBRARY)
def _linear_fake(x: Tensor, packed: Tensor, *args: Any) -> Tensor:
    scale, zero, bias, _, _, out_features, *_ = args
    _check_devices(x, packed, scale, zero, bias)
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.register_fake("qaig::linear_many", lib=_LIBRARY)
def _linear_many_fake(x: Tensor, packed: list[Tensor], *args: Any) -> list[Tensor]:
    scale, zero, bias, _, _, out_features, *_ = args
    _check_devices(x, *packed, *scale, *zero, *bias)
    return [x.new_empty(*x.shape[:-1], size) for size in out_features]


@torch.library.register_fake("qaig::linear_grad_input", lib=_LIBRARY)
def _linear_grad_input_fake(grad: Tensor, packed: Tensor, *args: Any) -> Tensor:
    scale, zero, _, _, in_features, *_ = args
    _check_devices(grad, packed, scale, zero)
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
    x, packed, scale, zero, bias, block, seed, _, bits, group_size, _, layout = inputs
    ctx.save_for_backward(packed, scale, zero)
    ctx.rotation, ctx.in_features = (block, seed), x.shape[-1]
    ctx.bits, ctx.group_size, ctx.layout = bits, group_size, layout
    ctx.bias_dtype = None if bias is None else bias.dtype


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x and bias. The packed weight is a constant: neither its integers nor its scales have one."""
    packed, scale, zero = ctx.saved_tensors
    if ctx.needs_input_grad[2]:
        raise NotImplementedError(
            "scale requires a gradient, but a packed weight is not trainable: call scale.requires_grad_(False), "
            "and train an adapter beside the layer"
        )
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.qaig.linear_grad_input(
            grad, packed, scale, zero, *ctx.rotation, ctx.in_features, ctx.bits, ctx.group_size, ctx.layout
        )
    if ctx.needs_input_grad[4]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=ctx.bias_dtype)
    return (grad_x, None, None, None, grad_bias, *[None] * 7)


def _save_for_grad_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, packed, scale, zero, block, seed, _, bits, group_size, layout = inputs
    ctx.save_for_backward(packed, scale, zero)
    ctx.rotation, ctx.out_features = (block, seed), grad.shape[-1]
    ctx.bits, ctx.group_size, ctx.layout = bits, group_size, layout


def _grad_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """grad @ W R' is linear in grad, so its own gradient (second derivatives) is the forward map without a bias."""
    packed, scale, zero = ctx.saved_tensors
    out = torch.ops.qaig.linear(
        grad, packed, scale, zero, None, *ctx.rotation, ctx.out_features, ctx.bits, ctx.group_size, 16, ctx.layout
    )
    return (out, *[None] * 9)


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
