"""`InputMoments`: second moments of what a group of linears reads, in the quantized and the full-precision model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .hessian import Hessian


@dataclass
class InputMoments:
    """Means over tokens: x_q is what the linears multiply in the quantized model, x in the full-precision one.

    Attributes:
        second: Σ λ x_q x_qᵀ / Σ λ, fp32 `[K, K]`.
        shift: Σ λ x_q (x - x_q)ᵀ / Σ λ, fp32 `[K, K]`; None where targets do not move.
        mass: Σ λ, fp32 `[]`.
    """

    second: Tensor
    shift: Tensor | None
    mass: Tensor

    @classmethod
    def of_sums(cls, second: Tensor, shift: Tensor | None, mass: Tensor) -> InputMoments:
        """Divides sums by their mass, in place: at 19,000 channels each is 1.4 GB."""
        divisor = mass.clamp(min=1e-12)
        return cls(second.div_(divisor), None if shift is None else shift.div_(divisor), mass)

    @property
    def nbytes(self) -> int:
        """The bytes of both matrices."""
        return self.second.nbytes + (0 if self.shift is None else self.shift.nbytes)

    def to(self, device: torch.device) -> InputMoments:
        """Returns them on a device: themselves if they are there."""
        shift = None if self.shift is None else self.shift.to(device)
        return InputMoments(self.second.to(device), shift, self.mass.to(device))

    def join(self, other: InputMoments) -> None:
        """Adds the tokens of other samples, in place."""
        share = other.mass / (self.mass + other.mass).clamp(min=1e-12)
        self.second.lerp_(other.second, share)
        if self.shift is not None and other.shift is not None:
            self.shift.lerp_(other.shift, share)
        self.mass = self.mass + other.mass

    def target(self, weight: Tensor, hessian: Hessian, share: float) -> Tensor:
        """Moves a weight `[N, K]` by `share` towards the full-precision model's output: W + share · W D H⁻¹.

        D is the transposed shift (asymmetric calibration, GPTAQ, arXiv 2504.02692).
        """
        if self.shift is None:
            return weight
        return weight + share * hessian.solve(self.shift @ weight.T).T

    def output_error(self, weight: Tensor, rounded: Tensor) -> float:
        """Computes Σ_rows E ‖W x - Ŵ x_q‖² less E ‖W (x - x_q)‖², which no rounding changes."""
        error = weight - rounded
        total = ((error @ self.second) * error).sum()
        if self.shift is not None:
            total += 2 * ((weight @ self.shift.T) * error).sum()
        return float(total)
