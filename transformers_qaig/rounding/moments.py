"""Second moments of what a group of linears reads, and how far an error in one column can be made up for by others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean."""
RETRIES = 3
"""Times that the damping is raised tenfold when H cannot be factorized."""


def second_moment(inputs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """
    H = Σ λ x xᵀ / Σ λ over tokens. A token whose input is not finite counts for nothing.

    Args:
        inputs: (x fp32 [B, T, K], λ fp32 [B, T]), at least one.

    Returns:
        fp32 [K, K], finite unless λ is not.
    """
    moment, total = moment_sum((x, x, weight) for x, weight in inputs)
    return moment / total.clamp(min=1e-12)


def moment_sum(inputs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """
    Σ λ x yᵀ and Σ λ over tokens; sums of several sets of tokens may be added. A token that is not finite counts for
    nothing.

    Args:
        inputs: (x fp32 [B, T, K], y fp32 [B, T, K], λ fp32 [B, T]), at least one.

    Returns:
        fp32 [K, K] and fp32 [], finite unless λ is not.
    """
    moment, total = torch.zeros(()), torch.zeros(())
    for x, y, weight in inputs:
        x, y, weight = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), weight.reshape(-1)
        bad = ~(torch.isfinite(x).all(-1) & torch.isfinite(y).all(-1))
        if bad.any():
            x, y = x.masked_fill(bad.unsqueeze(-1), 0.0), y.masked_fill(bad.unsqueeze(-1), 0.0)
            weight = weight.masked_fill(bad, 0.0)
        moment = moment.to(x) + x.T @ (y * weight.unsqueeze(-1))
        total = total.to(x) + weight.sum()
    return moment, total


@dataclass(frozen=True)
class Curvature:
    """
    H, and H⁻¹ = Uᵀ U with U upper triangular, once for all linears that read the same.

    Attributes:
        moment: H, fp32 [K, K].
        order: int64 [K], the columns in the order in which U has them.
        factor: U, fp32 [K, K], of the damped H; None where H says nothing or has no inverse even when damped.
    """

    moment: Tensor
    order: Tensor
    factor: Tensor | None

    @classmethod
    def of(cls, moment: Tensor, *, act_order: bool = True, damping: float = DAMPING) -> Curvature:
        """
        Args:
            moment: H, fp32 [K, K], symmetric; from [`second_moment`].
            act_order: columns in falling order of H_jj, else in theirs.
            damping: share of the mean of H's diagonal that is added to it.
        """
        diagonal = moment.diagonal()
        order = torch.arange(len(diagonal), device=moment.device)
        if act_order:
            order = diagonal.nan_to_num().argsort(descending=True, stable=True)
        return cls(moment, order, inverse_factor(moment[order][:, order], damping))

    def loss(self, error: Tensor) -> Tensor:
        """e H eᵀ per row: [N, K] → [N]."""
        return (error @ self.moment * error).sum(-1)

    def solve(self, right: Tensor) -> Tensor:
        """H⁻¹ · right, [K, N]; zeros where there is no H⁻¹, and at channels that were never seen."""
        if self.factor is None:
            return torch.zeros_like(right)
        solved = torch.empty_like(right)
        solved[self.order] = self.factor.T @ (self.factor @ right[self.order])
        return solved


def inverse_factor(moment: Tensor, damping: float) -> Tensor | None:
    """
    Upper triangular U with Uᵀ U = (H + damping · mean(diag H) · 1)⁻¹, fp32 [K, K]; None if there is none.

    From the Cholesky factor of H with rows and columns reversed: H = R Rᵀ with R upper triangular, U = R⁻¹. A channel
    that was never seen (H_jj = 0) stands alone in it.
    """
    diagonal = moment.diagonal()
    mean = diagonal.clamp(min=0).mean()
    if not torch.isfinite(moment).all() or mean <= 0:
        return None
    dead = diagonal <= 0
    for retry in range(RETRIES + 1):
        damped = moment.flip(0, 1)
        damped.diagonal().add_(mean * damping * 10**retry)
        damped[dead.flip(0)], damped[:, dead.flip(0)] = 0.0, 0.0
        damped.diagonal()[dead.flip(0)] = 1.0
        reversed_root, failed = torch.linalg.cholesky_ex(damped)
        if failed == 0:
            root = reversed_root.flip(0, 1)
            del damped, reversed_root  # at 19,000 channels each is 1.4 GB
            factor = torch.linalg.solve_triangular(root, torch.eye(len(root), device=root.device), upper=True)
            if torch.isfinite(factor).all():
                return factor
    return None
