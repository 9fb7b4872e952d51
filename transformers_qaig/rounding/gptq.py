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
from collections.abc import Iterable

import torch
from torch import Tensor

from .grid import Grid, Rounding

logger = logging.getLogger("transformers_qaig")

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean."""
RETRIES = 3
"""Times that the damping is raised tenfold when H cannot be factorized."""
COLUMNS = 8
"""Columns that are rounded one by one before the others hear of it."""


def second_moment(inputs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """
    H = Σ λ x xᵀ / Σ λ over tokens. A token whose input is not finite counts for nothing.

    Args:
        inputs: (x fp32 [B, T, K], λ fp32 [B, T]), at least one.

    Returns:
        fp32 [K, K], finite unless λ is not.
    """
    moment, total = torch.zeros(()), torch.zeros(())
    for x, weight in inputs:
        rows, weight = finite_tokens(x, weight)
        moment = moment.to(x) + rows.T @ (rows * weight.unsqueeze(-1))
        total = total.to(x) + weight.sum()
    return moment / total.clamp(min=1e-12)


def finite_tokens(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x as [tokens, K] and λ as [tokens]; both zero at tokens that are not finite."""
    rows, weight = x.reshape(-1, x.shape[-1]), weight.reshape(-1)
    bad = ~torch.isfinite(rows).all(-1)
    return (rows.masked_fill(bad.unsqueeze(-1), 0.0), weight.masked_fill(bad, 0.0)) if bad.any() else (rows, weight)


@torch.no_grad()
def gptq(
    weight: Tensor, hessian: Tensor, grid: Grid, *, act_order: bool = True, damping: float = DAMPING
) -> tuple[Rounding, Tensor]:
    """
    Codes of `weight` on `grid` with little output error e H eᵀ per row.

    An input channel that was never seen (H_jj = 0) is rounded to nearest: it may be used elsewhere. So is the whole
    weight if H is not finite or cannot be factorized even with a thousandfold damping.

    Args:
        weight: fp32 [N, K], finite.
        hessian: H, fp32 [K, K], symmetric; from [`second_moment`].
        grid: for `weight`, fixed beforehand.
        act_order: take columns in falling order of H_jj, else in theirs.
        damping: share of the mean of H's diagonal that is added to it.

    Returns:
        the rounding, and fp32 [N, K]: each column as it was when it was rounded, what it makes up for included.

    Raises:
        ValueError: shapes that do not fit.
    """
    columns = weight.shape[1]
    if weight.ndim != 2 or hessian.shape != (columns, columns):
        raise ValueError(f"hessian must be [{columns}, {columns}] for this weight, got {[*hessian.shape]}.")
    diagonal = hessian.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(columns, device=weight.device)
    factor = inverse_factor(hessian[order][:, order], damping)
    if factor is None:
        logger.warning("GPTQ: the second moments of the inputs cannot be factorized; rounded to nearest.")
        return Rounding(grid, grid.encode(weight)), weight.clone()
    # Rows of what follows are the weight's columns, in order, so that each lies together in memory.
    group = order // (columns // grid.scale.shape[1])
    step, scale, zero = (t.T[group].contiguous() for t in (grid.step, grid.scale, grid.zero))
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
    return Rounding(grid, codes[back].T.contiguous()), remaining[back].T.contiguous()


def inverse_factor(hessian: Tensor, damping: float) -> Tensor | None:
    """
    Upper triangular U with Uᵀ U = (H + damping · mean(diag H) · 1)⁻¹, fp32 [K, K]; None if there is none.

    From the Cholesky factor of H with rows and columns reversed: H = R Rᵀ with R upper triangular, U = R⁻¹.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(hessian).all():
        return None
    dead = diagonal <= 0
    mean = diagonal.clamp(min=0).mean()
    if mean <= 0:
        return None
    for retry in range(RETRIES + 1):
        damped = hessian.clone()
        damped.diagonal().add_(mean * damping * 10**retry)
        damped[dead], damped[:, dead] = 0.0, 0.0  # what others do is not made up for there
        damped.diagonal()[dead] = 1.0
        reversed_factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if failed == 0:
            root = reversed_factor.flip(0, 1)
            factor = torch.linalg.solve_triangular(root, torch.eye(len(root), device=root.device), upper=True)
            if torch.isfinite(factor).all():
                return factor
    return None
