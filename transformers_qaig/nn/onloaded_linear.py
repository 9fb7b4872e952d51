"""`onloaded_linear`: a linear whose weight is copied to the input's device and dtype for each product."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def onloaded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiplies as a linear does; for the gradient a weight of another device comes a second time.

    Args:
        x: `[..., K]`.
        weight: `[N, K]`, of any device and dtype.
        bias: `[N]`, like `x`.
    """
    if weight.device == x.device:
        return nn.functional.linear(x, weight.to(x.dtype), bias)
    return checkpoint(_linear, x, weight, bias, use_reentrant=False, preserve_rng_state=False)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(x, weight.to(x.device, x.dtype), bias)
