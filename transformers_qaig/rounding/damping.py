"""Chooses how much to damp a Hessian, by the error on samples that are held back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config.recipes import Recipe
from .clipping import diagonal_blocks, search_clipping
from .gptq import gptq
from .hessian import DAMPING, Hessian
from .moments import InputMoments, moved_target
from .quant_grid import QuantGrid, minmax_grid

DAMPINGS = (0.003, DAMPING, 0.03, 0.1, 0.3, 1.0)
"""Candidates, as shares of the mean of H's diagonal."""
ROWS = 256
"""Rows of each weight that a damping is tried on."""
KEPT_BYTES = 2**31
"""What the factors may take that wait to be used again."""


@dataclass(frozen=True)
class Damping:
    """What is added to the diagonal of H, as a share of its mean.

    Attributes:
        codes: where codes are chosen.
        target: where the target of a row moves.
    """

    codes: float = DAMPING
    target: float = DAMPING


class Hessians:
    """Makes the Hessians of a moment, and keeps the first ones that fit: several searches ask for the same dampings."""

    def __init__(self, moment: Tensor):
        self._moment, self._kept = moment, dict[float, Hessian]()

    def __call__(self, damping: float) -> Hessian:
        """Returns the Hessian with a damping."""
        if damping in self._kept:
            return self._kept[damping]
        found = Hessian.of(self._moment, damping=damping)
        if (1 + len(self._kept)) * self._moment.nbytes <= KEPT_BYTES:
            self._kept[damping] = found
        return found


@dataclass(frozen=True)
class _Tried:
    """Some rows of a weight that dampings are tried on.

    Attributes:
        weight: fp32 `[n, K]`.
        shift: how the calibration's inputs shift their outputs.
        held_back: how the inputs that are held back do.
    """

    weight: Tensor
    shift: Tensor | None
    held_back: Tensor | None


@torch.no_grad()
def choose_damping(
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Mapping[str, Any]],
    calibration: InputMoments,
    held_back: InputMoments,
    recipe: Recipe,
    hessian_of: Hessians,
) -> Damping:
    """Finds the damping with which GPTQ's result fits tokens best that it was not fitted to.

    Few tokens determine the directions badly in which inputs hardly vary. With little damping GPTQ, and the regression
    that moves its targets, fit the noise in them. With much damping they leave errors that they could have removed.
    Which costs more depends on the layer.

    Args:
        weights: name → fp32 `[N, K]`; all read the same input. Up to `ROWS` rows of each are tried.
        grids: name → what [`minmax_grid`] takes beside the weight.
        calibration: what the codes are chosen by.
        held_back: what the error of the result is measured on.
        recipe: how far targets move, and whether grids are clipped.
        hessian_of: makes the Hessians of the calibration's inputs.

    Returns:
        two of `DAMPINGS`; `DAMPING` where none has a finite error.
    """
    tried, share = {}, recipe.asymmetric
    for name, weight in weights.items():
        every = math.ceil(len(weight) / ROWS)
        shifts = (moments.output_shift(name, weight, every) for moments in (calibration, held_back))
        tried[name] = _Tried(weight[::every], *shifts)

    def error_of_targets(damping: float) -> float:
        hessian = hessian_of(damping)
        targets = (moved_target(one.weight, one.shift, hessian, share) for one in tried.values())
        return sum(held_back.output_error(one.weight, to, one.held_back) for one, to in zip(tried.values(), targets))

    target_damping = _least(error_of_targets) if share else DAMPING
    trials = _trials(tried, grids, calibration, hessian_of(target_damping), recipe)

    def error_of_codes(damping: float) -> float:
        hessian = hessian_of(damping)
        rounded = (gptq(target, hessian, grid).values for _, target, grid in trials)
        return sum(
            held_back.output_error(one.weight, values, one.held_back) for (one, _, _), values in zip(trials, rounded)
        )

    return Damping(_least(error_of_codes), target_damping)


def _trials(
    tried: Mapping[str, _Tried],
    grids: Mapping[str, Mapping[str, Any]],
    calibration: InputMoments,
    hessian: Hessian,
    recipe: Recipe,
) -> list[tuple[_Tried, Tensor, QuantGrid]]:
    """Returns the rows of each weight, their target, and a grid for that: of GPTQ's many one, as all take long."""
    trials = []
    for name, one in tried.items():
        target = moved_target(one.weight, one.shift, hessian, recipe.asymmetric)
        clipped: dict[str, Any] = {}
        if recipe.clipping:
            blocks = diagonal_blocks(calibration.second, grids[name]["group_size"])
            clipping = search_clipping(target, blocks, layer=name, **grids[name])
            clipped = {"shrink": clipping.shrink, "gain": clipping.gain}
        trials.append((one, target, minmax_grid(target, **clipped, **grids[name])))
    return trials


def _least(error_of: Callable[[float], float]) -> float:
    """Goes from `DAMPING` in the direction in which the error falls, as long as it does."""
    start = DAMPINGS.index(DAMPING)
    least = error_of(DAMPING)
    for candidates in (DAMPINGS[start + 1 :], DAMPINGS[:start][::-1]):
        best = DAMPING
        for damping in candidates:
            error = error_of(damping)
            if not error < least:
                break
            best, least = damping, error
        if best != DAMPING:
            return best
    return DAMPING
