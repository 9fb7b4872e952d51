"""Searches the scale E of a group's input channels, as AWQ does: channel-wise equalization (CWE, arXiv 2603.17809)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.logging import get_logger
from .fold import Group, tie

logger = get_logger(__name__)

MIN_SCALE = 1e-4
DEAD = 1e-8
"""A channel whose mean magnitude is below this share of the largest is dead: it is not scaled."""


@dataclass(frozen=True)
class Equalization:
    """The outcome of a search.

    It has `scale` E fp32 [C], the exponent `rho` that it comes from, and the losses at rho = 0 and at `rho`.
    """

    scale: Tensor
    rho: float
    loss_before: float
    loss: float


def search_scale(
    magnitude: Tensor,
    loss: Callable[[Tensor], float],
    *,
    group: Group | None = None,
    grid_points: int = 20,
    layer: str = "a group",
) -> Equalization:
    """Finds the scale with the smallest loss.

    It tries E = a^ρ / sqrt(max · min) for ρ = 0, 1/n, …, (n-1)/n and keeps the first with the smallest loss. So the
    result is never worse than no scaling on the data of `loss` (arXiv 2603.17809, channel-wise equalization).

    Args:
        magnitude: a, fp32 [C]: mean over real tokens of |x_c|.
        loss: E [C] → Σ λ · error of the sub-block with Q(W·E)/E; non-finite values are skipped.
        group: where E is to be folded: columns that come from one channel of the producer share a value, and columns
            that nothing can absorb keep 1. None: every column is free.
        grid_points: n.
        layer: what the warning about losses that are not finite calls the group.

    Returns:
        the best scale; E = 1 if nothing is finite.
    """
    fixed = torch.zeros_like(magnitude, dtype=torch.bool)
    if group is not None:
        fixed = torch.tensor(group.channels, device=magnitude.device) < 0
        magnitude = tie(magnitude, group)
    best = Equalization(torch.ones_like(magnitude), 0.0, math.inf, math.inf)
    before = math.inf
    for point in range(grid_points):
        rho = point / grid_points
        scale = scale_at(magnitude, rho).masked_fill(fixed, 1.0)
        value = loss(scale)
        if point == 0:
            before = value
        if math.isfinite(value) and value < best.loss:
            best = Equalization(scale, rho, before, value)
    if not math.isfinite(best.loss):
        logger.warning("Equalization of %s: no candidate had a finite loss; it is not scaled.", layer)
    return best


def scale_at(magnitude: Tensor, rho: float) -> Tensor:
    """Computes E = a^ρ, centred so that max · min = 1; dead channels keep 1."""
    alive = magnitude > DEAD * magnitude.max()
    scale = magnitude.clamp(min=torch.finfo(torch.float32).tiny).pow(rho).clamp(min=MIN_SCALE)
    if not alive.any():
        return torch.ones_like(magnitude)
    scale = scale / (scale[alive].max() * scale[alive].min()).sqrt()
    return torch.where(alive, scale, torch.ones_like(scale))
