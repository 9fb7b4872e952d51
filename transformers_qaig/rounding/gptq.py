"""
GPTQ: columns rounded one after the other, the error of each made up for by those still to come (arXiv 2210.17323).

With H = Σ λ x xᵀ the output error of a row is e H eᵀ. H⁻¹ = Uᵀ U with U upper triangular; after column j was rounded
with error e_j, the change of the later columns that lowers the output error most is -e_j U_j,>j / U_jj.

Columns are taken in falling order of H_jj (the largest first, while there is still freedom to make up for them), each
on the grid of the quantization group that it is stored in, which is fixed beforehand: nothing but the codes changes,
and no index of the order needs to be stored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from .grid import Grid, Rounding
from .moments import Curvature

logger = logging.getLogger("transformers_qaig")

COLUMNS = 8
"""Columns that are rounded one by one before the others hear of it."""
MAX_ELEMENTS = 2**28
"""Of weights that several grids are tried on at once."""


@torch.no_grad()
def gptq(weight: Tensor, curvature: Curvature, grid: Grid) -> Rounding:
    """
    Codes of `weight` on `grid` with little output error e H eᵀ per row.

    An input channel that was never seen (H_jj = 0) is rounded to nearest: it may be used elsewhere. So is the whole
    weight if H has no inverse.

    Args:
        weight: fp32 [N, K], finite.
        curvature: H of its inputs.
        grid: for `weight`, fixed beforehand.

    Returns:
        the rounding; its source is each column as it was when it was rounded, what it makes up for included.

    Raises:
        ValueError: shapes that do not fit.
    """
    return _rounded(weight, curvature, grid)[0]


def _rounded(weight: Tensor, curvature: Curvature, grid: Grid) -> tuple[Rounding, Tensor]:
    """The rounding, and e H eᵀ of every row with the damped H: the sum of (e_j / U_jj)² as each column was rounded."""
    columns, order, factor = weight.shape[-1], curvature.order, curvature.factor
    if weight.ndim != 2 or len(order) != columns:
        raise ValueError(f"the second moments of {len(order)} channels do not fit a weight of {[*weight.shape]}.")
    if factor is None:
        logger.warning("GPTQ: the second moments of the inputs have no inverse; rounded to nearest.")
        rounding = Rounding(grid, grid.encode(weight), weight)
        return rounding, (rounding.values - weight).square().sum(-1)
    # Rows of what follows are the weight's columns, in order, so that each lies together in memory.
    group = order // (columns // grid.scale.shape[1])
    step, scale, zero = (t.T[group] for t in (grid.step, grid.scale, grid.zero))
    remaining = weight.T[order].contiguous()
    codes, errors = torch.empty_like(remaining, dtype=torch.uint8), torch.empty_like(remaining)

    def take(first: int, last: int) -> None:
        if last - first > COLUMNS:  # halves: nearly all the arithmetic is in few large products
            middle = (first + last) // 2
            take(first, middle)
            remaining[middle:last] -= factor[first:middle, middle:last].T @ errors[first:middle]
            take(middle, last)
            return
        for j in range(first, last):
            code = (remaining[j] / step[j]).round_().add_(zero[j]).clamp_(0, grid.max_code)
            codes[j] = code.to(torch.uint8)
            errors[j] = (remaining[j] - (code - zero[j]) * scale[j]) / factor[j, j]
            if j + 1 < last:
                remaining[j + 1 : last] -= factor[j, j + 1 : last].unsqueeze(-1) * errors[j]

    take(0, columns)
    back = order.argsort()
    rounding = Rounding(grid, codes[back].T.contiguous(), remaining[back].T.contiguous())
    return rounding, errors.square_().sum(0)


@torch.no_grad()
def gptq_on_best_grid(weight: Tensor, curvature: Curvature, grids: Sequence[Grid]) -> Rounding:
    """
    For every row, [`gptq`] on the grid of `grids` with which it ends up with the least output error.

    A row's grid is judged by what GPTQ makes of it: what clips well when each weight is rounded to nearest need not
    leave room to make up for errors. All grids of some rows run at once, as rows of one weight.

    Args:
        weight: fp32 [N, K], finite.
        curvature: H of its inputs.
        grids: for `weight`, at least one, alike but for scales and zero points.

    Returns:
        as [`gptq`].
    """
    parts = []
    rows = max(MAX_ELEMENTS // (weight.shape[1] * len(grids)), 1)
    for first in range(0, len(weight), rows):
        here = slice(first, first + rows)
        part = weight[here]
        grid = Grid.cat([candidate.rows(here) for candidate in grids])
        tried, loss = _rounded(part.repeat(len(grids), 1), curvature, grid)
        best = loss.view(len(grids), -1).nan_to_num(torch.inf).argmin(0) * len(part) + torch.arange(
            len(part), device=part.device
        )
        parts.append(tried.rows(best))
    return Rounding.cat(parts)
