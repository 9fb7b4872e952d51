"""Refits scales to fixed codes by least squares, then removes the bias in output magnitude."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..utils.finite import is_lower
from .clipping import GAINS
from .hessian import Hessian
from .quant_grid import QuantizedWeight, storable

RIDGE = 1e-3
"""Ridge that keeps the scales near their old values, as a share of the system's mean diagonal."""
RANGE = (0.5, 2.0)
"""Bounds of a refitted scale over the old one."""


@torch.no_grad()
def refit_scales(
    weight: Tensor, hessian: Hessian, rounding: QuantizedWeight, storage_dtype: torch.dtype
) -> QuantizedWeight:
    """Returns the same codes with the scales of least output error e H eᵀ per row.

    e = Σ_g s_g (codes_g - zero_g) - w, which gives G equations a row. One gain a row then makes the result unbiased, Q
    H wᵀ = w H wᵀ: see [`search_clipping`]. A row keeps its scales where the new ones do not lower its error.

    Args:
        weight: fp32 [N, K].
        hessian: H of its inputs.
        rounding: of that weight.
        storage_dtype: what the scales are rounded to.
    """
    grid = rounding.grid
    moment = hessian.moment
    centred_codes = grid.grouped(rounding.codes.float()) - grid.zero_point.unsqueeze(-1)  # [N, G, g]
    rows, groups, size = centred_codes.shape
    projected = weight @ moment
    wanted = (centred_codes * grid.grouped(projected)).sum(-1)
    system = torch.empty(rows, groups, groups, device=weight.device)
    for g in range(groups):
        seen = centred_codes[:, g] @ moment[g * size : (g + 1) * size]
        system[:, g] = (centred_codes * grid.grouped(seen)).sum(-1)
    ridge = RIDGE * system.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True)
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    solved, failed = torch.linalg.solve_ex(system, (wanted + ridge * grid.scale).unsqueeze(-1))
    ratio = solved.squeeze(-1) / grid.scale
    usable = torch.isfinite(ratio) & (ratio > RANGE[0]) & (ratio < RANGE[1]) & (failed == 0).unsqueeze(-1)
    scale = torch.where(usable, ratio, 1.0) * grid.scale

    value = replace(grid, scale=scale).decode(rounding.codes)
    gain = (projected * weight).sum(-1) / (projected * value).sum(-1)
    scale = storable(scale * gain.nan_to_num(1.0, 1.0, 1.0).clamp(*GAINS).unsqueeze(-1), storage_dtype)

    candidate = replace(grid, scale=scale)
    losses = (hessian.loss(values - weight) for values in (candidate.decode(rounding.codes), rounding.values))
    better = is_lower(*losses)
    return replace(rounding, grid=replace(grid, scale=torch.where(better.unsqueeze(-1), scale, grid.scale)))
