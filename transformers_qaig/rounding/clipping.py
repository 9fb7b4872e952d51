"""Clipping: how far each group's range may shrink, chosen on the layer's own inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import minmax_grid

FACTORS = tuple(1.0 - 0.05 * step for step in range(9))  # 1, 0.95, …, 0.6


def second_moments(inputs: list[Tensor], weights: list[Tensor], group_size: int) -> Tensor:
    """
    λ-weighted second moments of the input channels, one block per quantization group.

    Args:
        inputs: per sample, fp32 [B, T, K].
        weights: per sample, λ fp32 [B, T].
        group_size: divides K, or -1 for K.

    Returns:
        fp32 [G, g, g]: Σ λ x xᵀ / Σ λ over each group's own channels.
    """
    columns = inputs[0].shape[-1]
    size = columns if group_size == -1 else group_size
    moments = torch.zeros(columns // size, size, size, device=inputs[0].device)
    total = torch.zeros((), device=inputs[0].device)
    for x, weight in zip(inputs, weights):
        rows = x.reshape(-1, columns // size, size).transpose(0, 1)  # [G, tokens, g]
        moments += rows.transpose(1, 2) @ (rows * weight.reshape(1, -1, 1))
        total += weight.sum()
    return moments / total.clamp(min=1e-12)


def search_shrink(
    weight: Tensor, moments: Tensor, factors: tuple[float, ...] = FACTORS, **grid: object
) -> Tensor:
    """
    For every row and group, the factor on the range with the least output error e H eᵀ, e = Q(w) - w.

    Args:
        weight: fp32 [N, K].
        moments: fp32 [G, g, g] from [`second_moments`].
        factors: candidates; the first wins ties.
        grid: what [`minmax_grid`] takes beside the weight.

    Returns:
        fp32 [N, G].
    """
    rows, groups = weight.shape[0], moments.shape[0]
    best = torch.full((rows, groups), torch.inf, device=weight.device)
    shrink = torch.ones(rows, groups, device=weight.device)
    for factor in factors:
        error = (minmax_grid(weight, shrink=factor, **grid).quantize(weight) - weight).view(rows, groups, -1)  # type: ignore[arg-type]
        loss = torch.einsum("ngk,gkl,ngl->ng", error, moments, error)
        better = loss < best
        best = torch.where(better, loss, best)
        shrink = torch.where(better, torch.full_like(shrink, factor), shrink)
    return shrink
