"""Implements `torch.ops.qaig.experts_linear` and its gradient: one projection of a stack of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..formats import experts
from ..formats.checks import check_dense, check_dispatchable
from ..formats.experts import ExpertWeights, check_experts
from ..kernels import extension
from .forward_mode import ForwardModeLibrary
from .ops import load_kernels
from .schema import LIBRARY

_DIFFERENTIABLE = ForwardModeLibrary("qaig", "IMPL")


def experts_linear(
    x: Tensor, offsets: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bits: list[int], *sizes: int
) -> Tensor:
    """Runs `qaig::experts_linear` where no kernel is registered: by the device's if it loads, else the reference."""
    # Calls that torch does not dispatch to the device's kernels would come back here without end.
    check_dispatchable("x", x, offsets=offsets, packed=packed, scale=scale, zero=zero)
    if load_kernels(x.device) and extension.has_kernel("experts_linear", x.device.type):
        return torch.ops.qaig.experts_linear(x, offsets, packed, scale, zero, bits, *sizes)
    return experts_linear_reference(x, offsets, packed, scale, zero, bits, *sizes)


def experts_linear_reference(
    x: Tensor,
    offsets: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: list[int],
    out_features: int,
    group_size: int,
    activation_bits: int,
    layout: int,
) -> Tensor:
    """Computes `qaig::experts_linear` in plain torch: x[r] @ W_e.T for the rows r of each expert e.

    Args:
        x: `[R, K]`, float16, bfloat16, float32 or float64, sorted by expert.
        offsets: int32 `[E + 1]`. Expert e has the rows `offsets[e]` to `offsets[e + 1]`. Rows from `offsets[E]` on
            belong to no expert, and their result is zero.
        packed: int32, flat; see [`transformers_qaig.formats.experts`].
        scale: `[E, N, G]`, float16, bfloat16 or float32; G = K / group_size, or 1.
        zero: int32, flat; None means 2^(bits - 1) everywhere (symmetric).
        bits: 2 to 8 for each expert, or one entry for all.
        out_features: N.
        group_size: input channels per group, or -1 for one group per row; the same for all experts.
        activation_bits: 16 uses x as it is; 8 rounds each row to 8 bits, as in `reference.round_activations`.
        layout: `CHECKPOINT_LAYOUT`, `CPU_LAYOUT` or `CUDA_LAYOUT`; the last two have other shapes.

    Returns:
        `[R, N]`, contiguous, in the dtype of x. Only experts with rows are read.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value (compiled kernels: RuntimeError).
        NotImplementedError: an `activation_bits` or `layout` that is unknown.
    """
    check_dense("x", x)
    check_dense("offsets", offsets)
    sizes = (offsets.numel() - 1, out_features, x.shape[-1], group_size, layout)
    weights = ExpertWeights(packed, scale, zero, bits, *sizes)
    check_experts("x", x, offsets, weights)
    return experts.experts_linear(x, offsets, weights, activation_bits)


def experts_linear_grad_input(
    grad: Tensor,
    offsets: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: list[int],
    in_features: int,
    group_size: int,
    layout: int,
) -> Tensor:
    """Computes `qaig::experts_linear_grad_input` in plain torch: grad[r] @ W_e, `[R, N]` to `[R, K]`.

    Arguments as in `experts_linear_reference`.
    """
    check_dense("grad", grad)
    check_dense("offsets", offsets)
    sizes = (offsets.numel() - 1, grad.shape[-1], in_features, group_size, layout)
    weights = ExpertWeights(packed, scale, zero, bits, *sizes)
    check_experts("grad", grad, offsets, weights)
    return experts.experts_linear_grad_input(grad, offsets, weights)


@torch.library.register_fake("qaig::experts_linear", lib=LIBRARY)
@torch.library.register_fake("qaig::experts_linear_grad_input", lib=LIBRARY)
def _fake(x: Tensor, offsets: Tensor, packed: Tensor, *args: Any) -> Tensor:
    scale, zero, _, features, *_ = args
    _check_devices(x, offsets, packed, scale, zero)
    return x.new_empty(x.shape[0], features)  # `len` would fix the number of rows in a compiled graph


def _check_devices(x: Tensor, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"a packed tensor is on {tensor.device} but the input is on {x.device}")


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps what both gradients need: the packed weights, and their sizes as the other operator takes them."""
    x, offsets, packed, scale, zero, bits, _, group_size, *_, layout = inputs
    ctx.save_for_backward(offsets, packed, scale, zero)
    ctx.sizes, ctx.layout = (bits, x.shape[-1], group_size), layout


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Computes the gradient of x; the packed weights are constants."""
    if ctx.needs_input_grad[3]:
        raise NotImplementedError(
            "scale requires a gradient, but packed experts are not trainable: call scale.requires_grad_(False)"
        )
    found = torch.ops.qaig.experts_linear_grad_input(grad, *ctx.saved_tensors, *ctx.sizes, ctx.layout)
    return (found, *[None] * 9)


def _grad_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Computes second derivatives: the gradient is linear in grad, so its own gradient is the forward map."""
    return (torch.ops.qaig.experts_linear(grad, *ctx.saved_tensors, *ctx.sizes, 16, ctx.layout), *[None] * 8)


def _autocast(x: Tensor, *args: Any) -> Tensor:
    """Casts x alone: casting the scales would change the weight."""
    check_dense("x", x)
    device_type = x.device.type
    if x.is_floating_point() and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device_type))
    with torch.autocast(device_type, enabled=False):
        return torch.ops.qaig.experts_linear(x, *args)


torch.library.register_autograd("qaig::experts_linear", _backward, setup_context=_save, lib=_DIFFERENTIABLE)
torch.library.register_autograd(
    "qaig::experts_linear_grad_input", _grad_input_backward, setup_context=_save, lib=_DIFFERENTIABLE
)
LIBRARY.impl("experts_linear", experts_linear, "CompositeExplicitAutograd")
LIBRARY.impl("experts_linear_reference", experts_linear_reference, "CompositeExplicitAutograd")
LIBRARY.impl("experts_linear_grad_input", experts_linear_grad_input, "CompositeExplicitAutograd")
for _device in ("cpu", "cuda"):
    LIBRARY.impl("experts_linear", _autocast, f"Autocast{_device.upper()}")
