"""Registers how `torch.compile`, autograd and autocast treat `torch.ops.qaig.*`; the rules hold for any backend."""

from typing import Any

import torch
from torch import Tensor

from ..formats.checks import check_dense
from .forward_mode import ForwardModeLibrary
from .schema import LIBRARY

_AUTOCAST_DEVICES = ("cpu", "cuda")
_DIFFERENTIABLE = ForwardModeLibrary("qaig", "IMPL")


@torch.library.register_fake("qaig::linear", lib=LIBRARY)
def _linear_fake(x: Tensor, packed: Tensor, *args: Any) -> Tensor:
    scale, zero, bias, _, _, out_features, *_ = args
    _check_devices(x, packed, scale, zero, bias)
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.register_fake("qaig::linear_many", lib=LIBRARY)
def _linear_many_fake(x: Tensor, packed: list[Tensor], *args: Any) -> list[Tensor]:
    scale, zero, bias, _, _, out_features, *_ = args
    _check_devices(x, *packed, *scale, *zero, *bias)
    return [x.new_empty(*x.shape[:-1], size) for size in out_features]


@torch.library.register_fake("qaig::linear_grad_input", lib=LIBRARY)
def _linear_grad_input_fake(grad: Tensor, packed: Tensor, *args: Any) -> Tensor:
    scale, zero, _, _, in_features, *_ = args
    _check_devices(grad, packed, scale, zero)
    return grad.new_empty(*grad.shape[:-1], in_features)


@torch.library.register_fake("qaig::embedding", lib=LIBRARY)
def _embedding_fake(ids: Tensor, packed: Tensor, *args: Any) -> Tensor:
    scale, zero, _, in_features, *_ = args
    _check_devices(ids, packed, scale, zero)
    return scale.new_empty(*ids.shape, in_features, dtype=torch.float32)


def _check_devices(x: Tensor, *tensors: Tensor | None) -> None:
    """Refuses meta tensors beside others: otherwise weights that were never loaded give uninitialised memory."""
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
    """Computes the gradients of x and bias; the packed weight is a constant."""
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
    """Computes second derivatives: grad @ W R' is linear in grad, so its gradient is the forward map without a bias."""
    packed, scale, zero = ctx.saved_tensors
    out = torch.ops.qaig.linear(
        grad, packed, scale, zero, None, *ctx.rotation, ctx.out_features, ctx.bits, ctx.group_size, 16, ctx.layout
    )
    return (out, *[None] * 9)


torch.library.register_autograd("qaig::linear", _linear_backward, setup_context=_save_for_linear, lib=_DIFFERENTIABLE)
torch.library.register_autograd(
    "qaig::linear_grad_input", _grad_input_backward, setup_context=_save_for_grad_input, lib=_DIFFERENTIABLE
)


def _linear_autocast(x: Tensor, *args: Any) -> Tensor:
    """Casts x alone: `torch.library.register_autocast` would cast the scales too and change the weight."""
    check_dense("x", x)
    device_type = x.device.type
    if x.is_floating_point() and x.dtype != torch.float64:  # torch's own rules leave float64 alone, too
        x = x.to(torch.get_autocast_dtype(device_type))
    with torch.autocast(device_type, enabled=False):
        return torch.ops.qaig.linear(x, *args)


for _device in _AUTOCAST_DEVICES:
    LIBRARY.impl("linear", _linear_autocast, f"Autocast{_device.upper()}")
