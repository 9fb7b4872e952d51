"""`InputMoments`: second moments of what a group of linears reads, in the quantized and the full-precision model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .hessian import Hessian


@dataclass
class InputMoments:
    """Means over tokens: x_q is what the linears multiply in the quantized model, x in the full-precision one.

    Attributes:
        second: Σ λ x_q x_qᵀ / Σ λ, fp32 `[K, K]`.
        shift: Σ λ x_q (x - x_q)ᵀ / Σ λ, fp32 `[K, K]`; None where targets do not move. With `rows`, it is multiplied by
            the weights: Σ λ x_q (W (x - x_q))ᵀ / Σ λ, fp32 `[K, N]`.
        mass: Σ λ, fp32 `[]`.
        rows: name of a linear → its rows in the weights that `shift` is multiplied by; None if it is not.
    """

    second: Tensor
    shift: Tensor | None
    mass: Tensor
    rows: Mapping[str, slice] | None = None

    @classmethod
    def of_sums(
        cls, second: Tensor, shift: Tensor | None, mass: Tensor, rows: Mapping[str, slice] | None = None
    ) -> InputMoments:
        """Divides sums by their mass, in place: at 19,000 channels each is 1.4 GB."""
        divisor = mass.clamp(min=1e-12)
        return cls(second.div_(divisor), None if shift is None else shift.div_(divisor), mass, rows)

    @property
    def nbytes(self) -> int:
        """The bytes of both matrices."""
        return self.second.nbytes + (0 if self.shift is None else self.shift.nbytes)

    def to(self, device: torch.device) -> InputMoments:
        """Returns them on a device: themselves if they are there."""
        shift = None if self.shift is None else self.shift.to(device)
        return replace(self, second=self.second.to(device), shift=shift, mass=self.mass.to(device))

    def join(self, other: InputMoments) -> None:
        """Adds the tokens of other samples, in place."""
        share = other.mass / (self.mass + other.mass).clamp(min=1e-12)
        self.second.lerp_(other.second, share)
        if self.shift is not None and other.shift is not None:
            self.shift.lerp_(other.shift, share)
        self.mass = self.mass + other.mass

    def output_shift(self, name: str, weight: Tensor, every: int = 1) -> Tensor | None:
        """Returns Σ λ x_q (W (x - x_q))ᵀ / Σ λ, `[K, N]`, of a linear's weight `[N, K]`, or of `every` n-th row of it.

        None where targets do not move.
        """
        if self.shift is None:
            return None
        return self.shift @ weight[::every].T if self.rows is None else self.shift[:, self.rows[name]][:, ::every]

    def output_error(self, weight: Tensor, rounded: Tensor, output_shift: Tensor | None) -> float:
        """Computes Σ_rows E ‖W x - Ŵ x_q‖² less E ‖W (x - x_q)‖², which no rounding changes."""
        error = weight - rounded
        total = ((error @ self.second) * error).sum()
        if output_shift is not None:
            total += 2 * (output_shift.T * error).sum()
        return float(total)


def moved_target(weight: Tensor, output_shift: Tensor | None, hessian: Hessian, share: float) -> Tensor:
    """Moves a weight `[N, K]` by `share` towards the full-precision model's output: W + share · W D H⁻¹.

    D is the transposed shift of the inputs (asymmetric calibration, GPTAQ, arXiv 2504.02692). The output shift is
    (W D)ᵀ.
    """
    return weight if output_shift is None else weight + share * hessian.solve(output_shift).T


def shifts_outputs(rows: int, columns: int) -> bool:
    """Whether to sum x_q (W (x - x_q))ᵀ, which costs 4 N K a token, rather than x_q (x - x_q)ᵀ, which costs 2 K²."""
    return 2 * rows < columns
