"""Implements `torch.ops.qaig.*`: with a device's kernels or, where there are none, the reference in plain torch.

A backend adds its kernel for a device with `TORCH_LIBRARY_IMPL(qaig, <device>, m)`. The CPU's are compiled (`csrc/`)
and loaded when they are first needed.
"""

from typing import Any

import torch
from torch import Tensor

from ..formats import cuda_layout, reference
from ..formats.checks import (
    ACTIVATION_DTYPES,
    check_activation,
    check_activation_bits,
    check_checkpoint_layout,
    check_cuda_layout,
    check_dense,
    check_dispatchable,
    check_lists,
    check_tensor,
    checked_rotation,
)
from ..formats.packing import CHECKPOINT_LAYOUT, CPU_LAYOUT, CUDA_LAYOUT, KERNEL_BITS
from ..formats.reference import Weight
from ..kernels import cuda, extension
from . import rules  # noqa: F401  (registers the rules)
from .schema import LIBRARY


def linear(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, *sizes: int) -> Tensor:
    """Runs `qaig::linear` where no kernel is registered: by the device's kernel if it loads now, else the reference."""
    # Calls that torch does not dispatch to the device's kernels would come back here without end.
    check_dispatchable("x", x, packed=packed, scale=scale, zero=zero, bias=bias)
    if load_kernels(x.device) and extension.has_kernel("linear", x.device.type):
        return torch.ops.qaig.linear(x, packed, scale, zero, bias, *sizes)
    return linear_reference(x, packed, scale, zero, bias, *sizes)


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
    """Computes `qaig::linear` in plain torch: x @ W.T + bias, with W as in `reference.dequantize`.

    Args:
        x: `[..., K]`, float16, bfloat16, float32 or float64; K is read off this tensor.
        packed: int32 `[N, ceil(K * bits / 32)]`.
        scale: `[N, G]`, float16, bfloat16 or float32; G = K / group_size, or 1.
        zero: int32 `[ceil(N * bits / 32), G]`; None means 2^(bits - 1) everywhere (symmetric).
        bias: floating `[N]`, or None.
        rotation_block: channels that are rotated together; 0 for no rotation. With one, x is rotated first, as in
            `hadamard.rotate`, and W is a weight for such an x: `linear` computes (x R) @ W.T + bias.
        rotation_seed: of the rotation's signs; not read if `rotation_block` is 0.
        out_features: N.
        bits: 2 to 8.
        group_size: input channels per group, or -1 for one group per row.
        activation_bits: 16 uses x as it is; 8 rounds each token to 8 bits, as in `reference.round_activations`.
        layout: `CHECKPOINT_LAYOUT`, or `CPU_LAYOUT` or `CUDA_LAYOUT` with the shapes that `repack` makes.

    Returns:
        `[..., N]`, contiguous, in the dtype of x.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device (compiled kernels: RuntimeError).
        NotImplementedError: an `activation_bits` or `layout` that the reference cannot handle.
    """
    check_activation_bits(activation_bits)
    check_activation("x", x)
    weight = Weight(packed, scale, zero, out_features, x.shape[-1], bits, group_size, layout)
    _check_weight(x, weight)
    rotation = checked_rotation(rotation_block, rotation_seed, x.shape[-1])
    if bias is not None:
        check_tensor("bias", bias, (out_features,), ACTIVATION_DTYPES, x)
    return reference.linear(x, weight, bias, rotation, activation_bits)


def linear_many(x: Tensor, *args: Any) -> list[Tensor]:
    """Runs `qaig::linear_many` where no kernel is registered: `qaig::linear` of one x by several layers, of any widths.

    It is not differentiable. Arguments as in `linear_reference`, except that they are lists with an entry for each
    layer. Compiled kernels refuse a float64 x.
    """
    check_lists(*args[:-2])
    check_dense("x", x)
    for packed, scale, zero, bias in zip(*args[:4]):
        check_dispatchable("x", x, packed=packed, scale=scale, zero=zero, bias=bias)
    if load_kernels(x.device) and extension.has_kernel("linear_many", x.device.type):
        return torch.ops.qaig.linear_many(x, *args)
    *layers, activation_bits, layout = args
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
    """Computes `qaig::linear_grad_input` in plain torch: grad @ W R', `[..., N]` to `[..., K]`.

    Arguments as in `linear_reference`.
    """
    check_activation("grad", grad)
    weight = Weight(packed, scale, zero, grad.shape[-1], in_features, bits, group_size, layout)
    _check_weight(grad, weight)
    rotation = checked_rotation(rotation_block, rotation_seed, in_features)
    return reference.linear_grad_input(grad, weight, rotation)


def embedding(ids: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, *sizes: int) -> Tensor:
    """Runs `qaig::embedding` where no kernel is registered: by the CPU's if it loads now, else the reference."""
    check_dispatchable("ids", ids, packed=packed, scale=scale, zero=zero)
    if load_kernels(ids.device) and extension.has_kernel("embedding", ids.device.type):
        return torch.ops.qaig.embedding(ids, packed, scale, zero, *sizes)
    return embedding_reference(ids, packed, scale, zero, *sizes)


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
    """Computes `qaig::embedding` in plain torch: the rows W[ids] of a packed weight.

    Args:
        ids: int32 or int64, any shape, values 0 to N - 1.
        packed: int32 `[N, ceil(K * bits / 32)]`.
        scale: `[N, G]`, float16, bfloat16 or float32; G = K / group_size, or 1.
        zero: int32 `[ceil(N * bits / 32), G]`; None means 2^(bits - 1) everywhere (symmetric).
        out_features: N.
        in_features: K.
        bits: 2 to 8.
        group_size: columns per group, or -1 for one group per row.
        layout: as in `linear_reference`; other layouts have other shapes.

    Returns:
        float32 `[*ids.shape, K]`, exact: what `reference.dequantize` computes before it rounds.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device (compiled kernels: RuntimeError).
        IndexError: an id that is no row (compiled kernels: RuntimeError; CUDA: an assertion on the device).
        NotImplementedError: a `layout` that the reference cannot read.
    """
    check_dense("ids", ids)
    if ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ids must have dtype int32 or int64, got {ids.dtype}")
    weight = Weight(packed, scale, zero, out_features, in_features, bits, group_size, layout)
    if layout == CUDA_LAYOUT:
        check_cuda_layout(ids, weight)
    else:
        _check_weight(ids, weight)
    return reference.embedding(ids, weight)


def kernel_layout(device: torch.device, bits: int) -> int:
    """Returns the layout that a device's kernels read; without kernels, `CHECKPOINT_LAYOUT`."""
    layout = {"cpu": CPU_LAYOUT, "cuda": CUDA_LAYOUT}.get(device.type, CHECKPOINT_LAYOUT)
    if layout == CHECKPOINT_LAYOUT or bits not in KERNEL_BITS or not load_kernels(device):
        return CHECKPOINT_LAYOUT
    return layout if extension.has_kernel("linear", device.type) else CHECKPOINT_LAYOUT


def load_kernels(device: torch.device) -> bool:
    """Loads a device's kernels if it can, and returns whether there are any; compiling may take a minute, once."""
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
    """Computes `qaig::repack` on CUDA devices: from the checkpoint layout to `CUDA_LAYOUT`, or back.

    Arguments as in `cuda_layout`.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device.
    """
    sizes = (out_features, in_features, bits, group_size)
    weight = Weight(packed, scale, zero, *sizes, layout)
    if bits not in KERNEL_BITS:
        raise ValueError(f"CUDA kernels have a layout for 2, 3, 4 and 8 bits only, got {bits}")
    if layout == CHECKPOINT_LAYOUT:
        check_checkpoint_layout(packed, weight)
        return cuda_layout.from_checkpoint(packed, scale, zero, *sizes)
    if layout != CUDA_LAYOUT:
        raise ValueError(f"layout={layout} belongs to another backend: CUDA devices have 0 (on disk) and {CUDA_LAYOUT}")
    check_cuda_layout(packed, weight)
    return cuda_layout.to_checkpoint(packed, scale, zero, *sizes)


def _check_weight(x: Tensor, weight: Weight) -> None:
    """Checks every tensor that comes from a checkpoint against the sizes, so that no kernel can read out of bounds."""
    check_dense("packed", weight.packed)
    layout = weight.layout
    if (
        layout != CHECKPOINT_LAYOUT
        and x.device == weight.packed.device
        and layout == kernel_layout(x.device, weight.bits)
    ):
        # `qaig::dequantize`, through which the reference reads such a weight, checks it; memory is taken before.
        codes, room = weight.out_features * weight.in_features, weight.packed.numel() * 32 // weight.bits
        if not 0 < codes <= room:
            raise ValueError(
                f"packed has room for {room} codes of bits={weight.bits}, and out_features={weight.out_features} by "
                f"in_features={weight.in_features} are asked for"
            )
        return
    if layout != CHECKPOINT_LAYOUT:
        raise NotImplementedError(
            f"layout={layout} belongs to another backend: the reference reads layout 0 (the checkpoint layout) only. "
            "Move the layer with `to`, which restores the checkpoint layout first"
        )
    check_checkpoint_layout(x, weight)


LIBRARY.impl("linear", linear, "CompositeExplicitAutograd")
LIBRARY.impl("linear_reference", linear_reference, "CompositeExplicitAutograd")
LIBRARY.impl("linear_many", linear_many, "CompositeExplicitAutograd")
LIBRARY.impl("linear_grad_input", linear_grad_input, "CompositeExplicitAutograd")
LIBRARY.impl("embedding", embedding, "CompositeExplicitAutograd")
LIBRARY.impl("repack", repack_cuda, "CUDA")
