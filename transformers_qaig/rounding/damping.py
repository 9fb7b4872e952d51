"""Chooses how much to damp a Hessian, by the error on samples that are held back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .clipping import diagonal_blocks, search_clipping
from .gptq import gptq
from .hessian import DAMPING, Hessian
from .moments import InputMoments
from .quant_grid import minmax_grid

DAMPINGS = (0.003, DAMPING, 0.03, 0.1, 0.3, 1.0)
"""Candidates, as shares of the mean of H's diagonal."""
ROWS = 256
"""Rows of each weight that a damping is tried on."""


@dataclass(frozen=True)
class Damping:
    """What is added to the diagonal of H, as a share of its mean.

    Attributes:
        codes: where codes are chosen.
        target: where the target of a row moves.
    """

    codes: float = DAMPING
    target: float = DAMPING


@torch.no_grad()
def choose_damping(
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Mapping[str, Any]],
    calibration: InputMoments,
    held_back: InputMoments,
    share: float = 0.0,
) -> Damping:
    """Finds the damping with which GPTQ's result fits tokens best that it was not fitted to.

    Few tokens determine the directions badly in which inputs hardly vary. With little damping GPTQ, and the regression
    that moves its targets, fit the noise in them. With much damping they leave errors that they could have removed.
    Which costs more depends on the layer.

    Args:
        weights: name → fp32 `[N, K]`; all read the same input. Up to `ROWS` rows of each are tried.
        grids: name → what [`minmax_grid`] takes beside the weight.
        calibration: what the codes are chosen by.
        held_back: what the result is judged by.
        share: how far targets move, see [`InputMoments.target`].

    Returns:
        two of `DAMPINGS`; `DAMPING` where none has a finite error.
    """
    weights = {name: weight[:: math.ceil(len(weight) / ROWS)] for name, weight in weights.items()}

    def error_of_targets(damping: float) -> float:
        hessian = Hessian.of(calibration.second, damping=damping)
        targets = (calibration.target(weight, hessian, share) for weight in weights.values())
        return sum(map(held_back.output_error, weights.values(), targets))

    found = Damping(target=_least(error_of_targets)) if share else Damping()
    hessian = Hessian.of(calibration.second, damping=found.target)
    trials = []
    for name, weight in weights.items():
        target, blocks = calibration.target(weight, hessian, share), grids[name]["group_size"]
        clipping = search_clipping(target, diagonal_blocks(calibration.second, blocks), layer=name, **grids[name])
        trials.append((weight, target, minmax_grid(target, shrink=clipping.shrink, gain=clipping.gain, **grids[name])))

    del hessian  # as large as H

    def error_of_codes(damping: float) -> float:
        hessian = Hessian.of(calibration.second, damping=damping)
        return sum(
            held_back.output_error(weight, gptq(target, hessian, grid).values) for weight, target, grid in trials
        )

    return Damping(_least(error_of_codes), found.target)


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
