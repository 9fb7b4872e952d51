"""The Pareto front of plans under a budget: the least predicted loss at each size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .allocate import Allocation, Options, allocate, knee, reachable
from .coverage import Coverage


@dataclass(frozen=True)
class Point:
    """One plan on the front.

    Attributes:
        bits: stored bits per weight that is chosen for.
        size: of all weights of the saved model, in bytes.
        loss: predicted; in nats per answer token, except for the cost `"output_error"`.
        widths: bits → how many weights have them; those that stay as they are, by the bits of their dtype.
    """

    bits: float
    size: float
    loss: float
    widths: dict[int, int]

    @classmethod
    def of(cls, allocation: Allocation, coverage: Coverage) -> Point:
        """Makes the point of an allocation; `coverage` has the size of the rest of the model."""
        return cls(
            allocation.size / coverage.to_choose,
            (allocation.size + coverage.other_bits) / 8,
            allocation.cost,
            allocation.widths,
        )


@dataclass(frozen=True)
class Front:
    """The best plans at several sizes, and uniform plans to compare them with.

    Attributes:
        points: the best plans, sizes rising.
        knee: index of the point after which a bit buys less than on average.
        uniform: every weight at one width, for comparison.
    """

    points: Sequence[Point]
    knee: int
    uniform: Sequence[Point]


def front_of(options: Options, coverage: Coverage, budgets: Sequence[float], fused: Sequence[Sequence[str]]) -> Front:
    """Returns the best plan within each budget, and the uniform plans to compare them with.

    Args:
        options: with their costs.
        coverage: has the size of the rest of the model.
        budgets: in stored bits, rising.
        fused: sets of weights that are stored alike.
    """
    points: list[Point] = []
    for budget in budgets:
        allocation = allocate(options, budget, fused)
        point = Point.of(allocation, coverage)
        if not points or point.bits > points[-1].bits:
            points.append(point)
    packed = {path: [o for o in choices if o.scheme is not None] for path, choices in options.items()}
    widths = sorted({option.bits for choices in packed.values() for option in choices})
    uniform = []
    for width in widths:
        same = {path: [o for o in choices if o.bits == width] or choices[-1:] for path, choices in packed.items()}
        uniform.append(Point.of(allocate(same, reachable(same)[1]), coverage))
    return Front(points, knee([p.bits for p in points], [p.loss for p in points]), uniform)


def even_budgets(least: float, most: float, count: int) -> list[float]:
    """Returns `count` budgets in stored bits, evenly from `least` to `most`.

    Each is half a bit larger, so that the smallest plan itself is not missed by rounding.
    """
    return [float(budget) + 0.5 for budget in np.linspace(least, most, count)]
