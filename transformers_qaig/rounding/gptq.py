"""GPTQ: rounds columns one after the other, and lets later columns compensate for each error (arXiv 2210.17323).

With H = Σ λ x xᵀ the output error of a row is e H eᵀ. H⁻¹ = Uᵀ U with U upper triangular. After column j was rounded
with error e_j, the change of the later columns that lowers the output error most is -e_j U_j,>j / U_jj.

Columns are taken in falling order of H_jj: the largest first, while there is still freedom to compensate for them. Each
is rounded on the grid of its own quantization group, which is fixed beforehand. So nothing but the codes changes, and
no index of the order needs to be stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.cuda.interface import MAX_GPTQ_COLUMNS
from ..utils.logging import get_logger
from .gptq_columns import gptq_columns
from .hessian import Hessian
from .quant_grid import QuantGrid, QuantizedWeight

logger = get_logger(__name__)

MAX_ELEMENTS = 2**28
"""The most elements of the weights that several grids are tried on at once."""


@torch.no_grad()
def gptq(weight: Tensor, hessian: Hessian, grid: QuantGrid, layer: str = "a weight") -> QuantizedWeight:
    """Finds codes of `weight` on `grid` with little output error e H eᵀ per row.

    An input channel that was never active (H_jj = 0) is rounded to nearest: it may be used elsewhere. So is the whole
    weight if H has no inverse.

    Args:
        weight: fp32 [N, K], finite.
        hessian: H of its inputs.
        grid: for `weight`, fixed beforehand.
        layer: what the warning about an H without inverse calls the weight.

    Returns:
        the rounding; its source is each column just before it was rounded, compensation included.

    Raises:
        ValueError: shapes that do not fit.
    """
    return gptq_on_best_grid(weight, hessian, [grid], layer)


@torch.no_grad()
def gptq_on_best_grid(
    weight: Tensor, hessian: Hessian, grids: Sequence[QuantGrid], layer: str = "a weight"
) -> QuantizedWeight:
    """Runs [`gptq`] on several grids and keeps, for every row, the grid with the least output error.

    A grid is measured by its result after GPTQ. One that clips well for nearest rounding need not leave room to
    compensate for errors. All grids of some rows run at once, as rows of one weight.

    Args:
        weight: fp32 [N, K], finite.
        hessian: H of its inputs.
        grids: for `weight`, at least one, alike except for scales and zero points.
        layer: as in [`gptq`].

    Returns:
        as [`gptq`].
    """
    if weight.ndim != 2 or len(hessian.order) != weight.shape[-1]:
        raise ValueError(
            f"the second moments of {len(hessian.order)} channels do not fit a weight of {[*weight.shape]}."
        )
    if hessian.factor is None:
        logger.warning("GPTQ of %s: the second moments of its inputs have no inverse; rounded to nearest.", layer)
    parts = []
    rows = max(MAX_ELEMENTS // (weight.shape[1] * len(grids)), 1)
    for first in range(0, len(weight), rows):
        here = slice(first, first + rows)
        parts.append(_rounded(weight[here], hessian, [grid.rows(here) for grid in grids]))
    return QuantizedWeight.cat(parts)


def _rounded(weight: Tensor, hessian: Hessian, grids: Sequence[QuantGrid]) -> QuantizedWeight:
    """Rounds every row on the grid of least e H eᵀ with the damped H: the sum of (e_j / U_jj)² over columns.

    At `MAX_ELEMENTS` all grids need 1 GB each for weights and errors. So both are made once, and only what is kept is
    brought back to the order of the columns.
    """
    columns, order, factor, grid = weight.shape[-1], hessian.order, hessian.factor, QuantGrid.cat(grids)
    if factor is None:
        source = weight.repeat(len(grids), 1)
        tried = QuantizedWeight(grid, grid.encode(source), source)
        return tried.rows(_least((tried.values - source).square().sum(-1), len(grids)))
    # The rows below are the weight's columns, in order, so that each is contiguous in memory.
    group_of = order // (columns // grid.scale.shape[1])
    encode_scale, scale, zero_point = (t.T.contiguous() for t in (grid.encode_scale, grid.scale, grid.zero_point))
    remaining = weight.T[order].repeat(1, len(grids))
    codes, errors = torch.empty_like(remaining, dtype=torch.uint8), torch.empty_like(remaining)

    _Columns(remaining, errors, codes, factor, group_of, encode_scale, scale, zero_point, grid.max_code).round_columns(
        0, columns
    )
    best, back = _least(errors.square_().sum(0), len(grids)), order.argsort()
    codes, source = (of_all[:, best][back].T.contiguous() for of_all in (codes, remaining))
    return QuantizedWeight(grid.rows(best), codes, source)


class _Columns(NamedTuple):
    """The tensors that rounding column by column works on; the first index is the column's, in order.

    Not a nested function: one that calls itself keeps its tensors, gigabytes of them, until Python looks for cycles.
    """

    remaining: Tensor
    errors: Tensor
    codes: Tensor
    factor: Tensor
    group_of: Tensor
    encode_scale: Tensor
    scale: Tensor
    zero_point: Tensor
    max_code: int

    def round_columns(self, first: int, last: int) -> None:
        """Rounds columns `first` to `last`, and lets the later ones among them compensate."""
        remaining, errors, factor = self.remaining, self.errors, self.factor
        if last - first > MAX_GPTQ_COLUMNS:
            # Halves, each of whole runs of columns: nearly all the arithmetic is in few large products.
            middle = first + MAX_GPTQ_COLUMNS * math.ceil((last - first) / MAX_GPTQ_COLUMNS / 2)
            self.round_columns(first, middle)
            remaining[middle:last].sub_(factor[first:middle, middle:last].T @ errors[first:middle])
            self.round_columns(middle, last)
            return
        columns = (t[first:last] for t in (remaining, errors, self.codes, factor[:, first:last], self.group_of))
        gptq_columns(*columns, self.encode_scale, self.scale, self.zero_point, self.max_code)


def _least(loss: Tensor, grids: int) -> Tensor:
    """Returns the index of each row on its best grid, [grids * N] → int64 [N]. A loss that is not finite never wins."""
    loss = loss.view(grids, -1).nan_to_num(torch.inf)
    return loss.argmin(0) * loss.shape[1] + torch.arange(loss.shape[1], device=loss.device)
