"""Accumulates second moments of a layer's inputs, and factors their inverse for GPTQ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..distributed import Terms
from ..utils.finite import are_finite, is_finite
from .bfloat16_products import product
from .cholesky import inverse_root

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean."""
MIN_TOKENS = 64
"""With fewer real tokens the second moments are too uncertain to clip or to round by."""
RETRIES = 3
"""Times that the damping is raised tenfold when H cannot be factorized."""
STRIPE = 4096
"""Rows of a moment that are made, or looked at, at once: all of 19,000 channels are 1.4 GB."""
STRIPES, MIN_STRIPE = 8, 128
"""Into so many stripes of rows a symmetric moment is divided, if they are not smaller than that."""
ALL_HERE = Terms[Any]([])
"""Terms that one process adds up by itself."""


def second_moment(inputs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Computes H = Σ λ x xᵀ / Σ λ over tokens. Tokens whose input is not finite are skipped.

    Args:
        inputs: (x fp32 [B, T, K], λ fp32 [B, T]), at least one.

    Returns:
        fp32 [K, K], finite unless λ is not.
    """
    moment, total = moment_sum((x, x, weight) for x, weight in inputs)
    return moment / total.clamp(min=1e-12)


def moment_sum(inputs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Computes Σ λ x yᵀ and Σ λ over tokens, as a [`HessianAccumulator`] adds them. Those not finite are skipped.

    Args:
        inputs: (x fp32 [B, T, K], y fp32 [B, T, K], λ fp32 [B, T]), at least one.

    Returns:
        fp32 [K, K] and fp32 [], finite unless λ is not.
    """
    total = HessianAccumulator()
    for tokens in inputs:
        total.add(*finite_tokens(*tokens))
    total.complete()
    return total.moment, total.mass


@dataclass
class HessianAccumulator:
    """Adds up Σ λ x yᵀ (fp32 [K, K]) and Σ λ (fp32 []) over tokens.

    Sums of several sets of tokens may be added. Where y is x itself, half of the products are the others transposed,
    and nearly half are not computed.

    Attributes:
        moment: so far. Call `complete` before it is read.
        mass: so far.
        terms: which ranks add tokens in turns. All then add in the same rounds.
    """

    moment: Tensor = field(default_factory=lambda: torch.zeros(()))
    mass: Tensor = field(default_factory=lambda: torch.zeros(()))
    terms: Terms[Any] = ALL_HERE
    _is_upper: bool = False

    def add(self, x: Tensor, y: Tensor, weight: Tensor, rest: Tensor | None = None) -> None:
        """Adds some tokens, which are finite. To one sum, y is always x itself, or never.

        Ranks talk once for each stripe, also where only some of them have bfloat16 or a rest.

        Args:
            x: fp32 [B, T, K]; or bfloat16, if [`multiplies_exactly`] says so of the device.
            y: like x.
            weight: λ fp32 [B, T]; 0 and 1 alone with bfloat16.
            rest: like y; what y lacks.
        """
        is_symmetric = y is x
        parts = [part.reshape(-1, part.shape[-1]) for part in (y, rest) if part is not None]
        x, y, weight = x.reshape(-1, x.shape[-1]), parts[0], weight.reshape(-1)
        if self.moment.ndim == 0:
            self.moment = torch.zeros(x.shape[-1], y.shape[-1], dtype=weight.dtype, device=x.device)
            self._is_upper = is_symmetric
        parts = [part * weight.to(part.dtype).unsqueeze(-1) for part in parts]
        for rows, columns in self._parts():
            products = (product(x[:, rows].T, part[:, columns]) for part in parts)
            self.terms.add(self.moment[rows, columns], reduce(Tensor.add_, products))
        self.mass = self.mass.to(weight, copy=True)
        self.terms.add(self.mass, weight.sum())

    def join(self, other: HessianAccumulator) -> None:
        """Adds the tokens of another sum of the same kind."""
        if other.moment.ndim:
            self.moment = self.moment.add_(other.moment) if self.moment.ndim else other.moment.clone()
            self.mass, self._is_upper = self.mass.to(other.mass) + other.mass, other._is_upper

    def complete(self) -> None:
        """Collects the sums of all ranks, and fills in what follows from symmetry."""
        for rows, columns in self._parts():
            self.terms.complete(self.moment[rows, columns])
            if self._is_upper:
                self.moment[rows.stop :, rows] = self.moment[rows, rows.stop :].T

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Yields rows of the sum, and the columns of them that are added up."""
        size = len(self.moment) if self.moment.ndim else 0
        stripe = min(STRIPE, max(size // STRIPES, MIN_STRIPE)) if self._is_upper else STRIPE
        for start in range(0, size, stripe):
            yield slice(start, min(start + stripe, size)), slice(start if self._is_upper else 0, None)


def finite_tokens(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns tokens and their weights, zeros for those of which x or y is not finite."""
    if is_finite(x) and (y is x or is_finite(y)):
        return x, y, weight
    bad = ~(_finite_rows(x) & _finite_rows(y))
    finite = x.masked_fill(bad.unsqueeze(-1), 0.0)
    other = finite if y is x else y.masked_fill(bad.unsqueeze(-1), 0.0)
    return finite, other, weight.masked_fill(bad, 0.0)


def _finite_rows(x: Tensor) -> Tensor:
    """Returns which rows of x [..., K] are finite, bool [...], without a copy of x."""
    low, high = x.amin(-1), x.amax(-1)  # NaN wins both; on the CPU `aminmax` takes eight times as long
    return torch.isfinite(low) & torch.isfinite(high)


@dataclass(frozen=True)
class Hessian:
    """H and the factor of its inverse, H⁻¹ = Uᵀ U with U upper triangular, once for all linears that share an input.

    Attributes:
        moment: H, fp32 [K, K].
        order: int64 [K], the columns in the order in which U has them.
        factor: U, fp32 [K, K], of the damped H; None where H is zero or has no inverse even when damped.
    """

    moment: Tensor
    order: Tensor
    factor: Tensor | None

    @classmethod
    def of(cls, moment: Tensor, *, act_order: bool = True, damping: float = DAMPING) -> Hessian:
        """Factors a second moment.

        Args:
            moment: H, fp32 [K, K], symmetric; from [`second_moment`].
            act_order: columns in falling order of H_jj, else in theirs.
            damping: share of the mean of H's diagonal that is added to it.
        """
        diagonal = moment.diagonal()
        order = torch.arange(len(diagonal), device=moment.device)
        if act_order:
            order = diagonal.nan_to_num().argsort(descending=True, stable=True)
        return cls(moment, order, inverse_factor(moment, damping, order))

    def loss(self, error: Tensor) -> Tensor:
        """Computes e H eᵀ per row: [N, K] → [N]."""
        return (error @ self.moment * error).sum(-1)

    def solve(self, right: Tensor) -> Tensor:
        """Computes H⁻¹ · right, [K, N]; zeros where there is no H⁻¹, and at channels that were never active."""
        if self.factor is None:
            return torch.zeros_like(right)
        solved = torch.empty_like(right)
        solved[self.order] = self.factor.T @ (self.factor @ right[self.order])
        return solved


def inverse_factor(moment: Tensor, damping: float, order: Tensor | None = None) -> Tensor | None:
    """Computes the upper triangular U with Uᵀ U = (H + damping · mean(diag H) · 1)⁻¹, fp32 [K, K].

    It comes from the Cholesky factor of H with rows and columns reversed: H = R Rᵀ with R upper triangular, U = R⁻¹. A
    channel that was never active (H_jj = 0) stands alone in it.

    Args:
        moment: H, fp32 [K, K], symmetric; not changed.
        damping: see above.
        order: int64 [K], the order in which U has H's columns; None keeps theirs.

    Returns:
        U, or None if the damped H is not positive definite.
    """
    # At 19,000 channels a matrix is 1.4 GB: at most two stand beside H at any time.
    backwards = torch.arange(len(moment), device=moment.device) if order is None else order
    backwards = backwards.flip(0)
    diagonal = moment.diagonal()[backwards.flip(0)]
    mean = diagonal.clamp(min=0).mean()
    if not all(are_finite([moment, mean.log()])):  # that of zero is not; the host waits once
        return None
    dead = diagonal.flip(0) <= 0
    for retry in range(RETRIES + 1):
        damped = moment[backwards.unsqueeze(-1), backwards]
        damped.diagonal().add_(mean * damping * 10**retry)
        damped[dead], damped[:, dead] = 0.0, 0.0
        damped.diagonal()[dead] = 1.0
        inverse = inverse_root(damped)
        if inverse is not None and is_finite(inverse):
            del damped
            return inverse.flip(0, 1)
    return None
