"""Computes token weights λ by Quantization-aware Integrated Gradients (QIG, arXiv 2603.17809).

The paper calls λ token importance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def qig(
    difference: Callable[[Tensor], Tensor],
    x: Tensor,
    baseline: Tensor,
    *,
    steps: int = 8,
    both_ends: bool = False,
) -> Tensor:
    """Computes QIG of a sub-block's input by the midpoint rule.

        (x - x0) ∘ ∫₀¹ ∂/∂x_α Σ_t mean_c |f(x_α, w) - f(x_α, w^q)| dα,   x_α = x0 + α (x - x0)

    It is complete: summed over tokens and channels it is Σ_t F_t(x) - Σ_t F_t(x0).

    Args:
        difference: x_α [B, T, C] → f(x_α, w) - f(x_α, w^q), [..., C'].
        x: [B, T, C] fp32, the input in the full-precision model.
        baseline: [B, T, C] fp32, x0: the input in the quantized model for the paper's own form.
        steps: of the midpoint rule. The integrand has kinks, so a higher-order rule gains nothing.
        both_ends: the rule of the paper's code instead: `steps` points from 0 to 1, both ends included, all of the same
            weight. Its sum is not complete.

    Returns:
        [B, T, C] fp32.
    """
    step = x - baseline
    gradient = torch.zeros_like(x)
    for index in range(steps):
        alpha = index / (steps - 1) if both_ends else (index + 0.5) / steps
        point = (baseline + alpha * step).detach().requires_grad_()
        with torch.enable_grad():
            total = difference(point).abs().mean(-1).sum()
            (slope,) = torch.autograd.grad(total, point)
        gradient += slope
    return step * gradient / steps


def qig_linear(x: Tensor, baseline: Tensor, weight_error: Tensor) -> Tensor:
    """Computes QIG of a single linear in closed form.

    Along the path the output difference u = x_α Dᵀ is linear in α. So the mean of its sign is (|u1| - |u0|) / (u1 -
    u0). This is exact and needs no autograd; the bias cancels.

    Args:
        x: [..., C] fp32.
        baseline: [..., C] fp32.
        weight_error: D = w - w^q, [C', C] fp32.

    Returns:
        [..., C] fp32.
    """
    u1, u0 = x @ weight_error.T, baseline @ weight_error.T
    change = u1 - u0
    flat = change.abs() <= 1e-12
    sign = torch.where(flat, u0.sign(), (u1.abs() - u0.abs()) / torch.where(flat, torch.ones_like(change), change))
    return (x - baseline) * (sign @ weight_error) / weight_error.shape[0]


def weights_from_attribution(attribution: Tensor, mask: Tensor, *, clip: bool = True) -> Tensor:
    """Turns an attribution into token weights λ that average 1 over the real tokens.

    r_t = mean_c |QIG| is clipped to [q1 - 1.5 IQR, q3 + 1.5 IQR] of the sample's real tokens, then normalised.

    Every real token weighs the same in two cases. All attributions are zero, as at the first sub-block of a model,
    whose input has no error yet. Or more than half of a sample's attributions are not finite.

    Args:
        attribution: [B, T, C].
        mask: bool [B, T], True at real tokens.
        clip: clip outliers by the interquartile range.

    Returns:
        fp32 [B, T], zero at padding.
    """
    scores = attribution.float().abs().mean(-1)
    weights = torch.zeros_like(scores)
    for score, token_mask, weight in zip(scores, mask, weights):
        r = score[token_mask]
        bad = ~torch.isfinite(r)
        r = r.masked_fill(bad, 0.0)
        if r.numel() and bad.float().mean() <= 0.5:
            if clip and r.numel() >= 4:
                q1, q3 = torch.quantile(r, torch.tensor([0.25, 0.75], device=r.device))
                margin = 1.5 * (q3 - q1)
                r = torch.minimum(torch.maximum(r, q1 - margin), q3 + margin)
            total = r.sum()
            if total > 0:
                weight[token_mask] = r / total * r.numel()
                continue
        weight[token_mask] = 1.0
    return weights


def flatten_weights(weights: Tensor, effective: float = 0.5) -> Tensor:
    """Flattens token weights to w^p, so that a few heavy tokens do not make up a second moment alone.

    p is the largest exponent ≤ 1 that leaves an effective sample size (Σ w)² / Σ w² of at least `effective`. That is a
    share of the tokens that count. The result has mean 1 over those tokens.

    Args:
        weights: fp32, ≥ 0, any shape; zero where a token does not count.
        effective: 0 to 1.
    """
    counted = weights > 0
    values = weights[counted].double()
    if not len(values):
        return weights

    def effective_fraction(power: float) -> float:
        w = values.pow(power)
        return float(w.sum().square() / w.square().sum() / len(w))

    low, high = 0.0, 1.0
    if effective_fraction(1.0) >= effective:
        low = 1.0
    else:
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if effective_fraction(middle) >= effective else (low, middle)
    w = values.pow(low)
    result = torch.zeros_like(weights)
    result[counted] = (w / w.mean()).to(weights)
    return result
