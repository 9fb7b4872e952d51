"""Solves the multiple-choice knapsack problem: one option per unit, least cost, total size within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..utils.stdout import silenced_stdout

GAP = 1e-5
"""How far the excess cost may be above the least possible, as a share of it. Excess is over each unit's cheapest."""
MANY, GAP_OF_MANY = 2000, 1e-4
"""From so many units on, this gap is small enough: branch and bound would take long to close it."""


def knapsack(sizes: Sequence[np.ndarray], costs: Sequence[np.ndarray], budget: float) -> list[int]:
    """Returns the index of the chosen option per unit.

    The linear relaxation is near enough for thousands of experts. What remains is left to HiGHS.

    Args:
        sizes: of each unit's options; those of the smallest options fit into the budget.
        costs: of each unit's options, finite.
        budget: the most that the sizes may add up to.

    Raises:
        RuntimeError: the solver fails.
    """
    counts = [len(size) for size in sizes]
    owner = np.repeat(np.arange(len(counts)), counts)
    starts = np.searchsorted(owner, np.arange(len(counts)))
    # What is above each unit's least, sizes in whole units: the solver is far faster with small integers.
    size = np.concatenate([size - size.min() for size in sizes])
    unit = max(int(np.gcd.reduce(size.astype(np.int64))), 1)
    size, room = size / unit, (budget - sum(size.min() for size in sizes)) // unit
    cost = np.concatenate([cost - cost.min() for cost in costs])
    cost /= cost.max() or 1.0

    picks, price = _relaxed(size, cost, starts, room)
    fitting = _filled(picks, size, cost, owner, room)
    if not cost[fitting].any():
        return list(fitting - starts)  # every unit has its cheapest option: nothing can improve
    # An option is out of the question if, at the relaxation's price of size, it is dearer than its unit's best by more
    # than what lies between that choice and the relaxation's bound (Lagrange; most options of most units are).
    excess = cost + price * size
    excess -= np.minimum.reduceat(excess, starts)[owner]
    gap = excess[fitting].sum() + price * (room - size[fitting].sum())
    if gap <= (GAP if len(counts) < MANY else GAP_OF_MANY) * cost[fitting].sum():
        return list(fitting - starts)
    left = np.flatnonzero(excess <= gap + 1e-12)
    if len(left) == len(counts):
        return list(fitting - starts)
    picks = left[_highs(size[left], cost[left] / cost[fitting].sum(), owner[left], room)]
    # Within its tolerance the solver may overstep the budget: give back the cheapest steps down.
    while size[picks].sum() > room:
        smaller = np.flatnonzero(size < size[picks][owner])
        price_of = (cost[smaller] - cost[picks][owner[smaller]]) / (size[picks][owner[smaller]] - size[smaller])
        step = smaller[np.argmin(price_of)]
        picks[owner[step]] = step
    return list(min(picks, fitting, key=lambda choice: cost[choice].sum()) - starts)


def _relaxed(size: np.ndarray, cost: np.ndarray, starts: np.ndarray, room: float) -> tuple[np.ndarray, float]:
    """Solves the problem without integrality: takes the steps along each unit's convex hull, most gain per size first.

    At most one unit is torn between two options. It gets its smaller one, which fits.

    Returns:
        the index of each unit's option, and the price of size: the gain of the first step that does not fit.
    """
    hulls = [_hull(size, cost, first, last) for first, last in pairwise([*starts.tolist(), len(size)])]
    before = np.array([one for hull in hulls for one in hull[:-1]], int)
    after = np.array([one for hull in hulls for one in hull[1:]], int)
    unit = np.repeat(np.arange(len(hulls)), [len(hull) - 1 for hull in hulls])
    more = size[after] - size[before]
    gain = (cost[before] - cost[after]) / more
    order = np.argsort(-gain, kind="stable")  # the steps of one unit stay in order
    fit = int(np.searchsorted(np.cumsum(more[order]), room, side="right"))
    picks = np.array([hull[0] for hull in hulls])
    picks[unit[order[:fit]]] = after[order[:fit]]  # of several steps of a unit the last one counts
    return picks, float(gain[order[fit]]) if fit < len(order) else 0.0


def _hull(size: np.ndarray, cost: np.ndarray, first: int, last: int) -> list[int]:
    """Lists the options of a unit from its smallest to its cheapest such that each step gains less per size."""
    hull: list[int] = []
    for option in sorted(range(first, last), key=lambda o: (size[o], cost[o])):
        if hull and cost[option] >= cost[hull[-1]]:
            continue
        while len(hull) > 1 and _gain(size, cost, hull[-2], hull[-1]) <= _gain(size, cost, hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _gain(size: np.ndarray, cost: np.ndarray, one: int, other: int) -> float:
    return float((cost[one] - cost[other]) / (size[other] - size[one]))


def _highs(size: np.ndarray, cost: np.ndarray, owner: np.ndarray, room: float) -> np.ndarray:
    """Solves the problem by branch and bound; returns the index of each unit's option.

    Args:
        size: of all options.
        cost: of all options; those of a good choice add up to 1.
        owner: the unit of each option, rising.
        room: the most that the sizes may add up to.

    Raises:
        RuntimeError: the solver fails.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import and seldom needed
    from scipy.sparse import csr_array

    units = int(owner[-1]) + 1
    one_each = csr_array((np.ones(len(cost)), (owner, np.arange(len(cost)))), shape=(units, len(cost)))
    with silenced_stdout():  # HiGHS has lines that no option of it turns off
        result = milp(
            cost / 10,  # its absolute gap of 1e-6 is then a relative one of `GAP`, too
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(csr_array(size[None]), -np.inf, room),
            ],
            options={"mip_rel_gap": GAP},
        )
    if result.x is None:
        raise RuntimeError(f"the solver found no allocation: {result.message}")
    return np.lexsort((-result.x, owner))[np.searchsorted(owner, np.arange(units))]


def _filled(picks: np.ndarray, size: np.ndarray, cost: np.ndarray, owner: np.ndarray, room: float) -> np.ndarray:
    """Improves a choice that fits, step by step: each time by the step that gains most, of those that fit."""
    while True:
        gain = np.where(size - size[picks][owner] <= room - size[picks].sum(), cost[picks][owner] - cost, 0.0)
        step = int(np.argmax(gain))
        if gain[step] <= 0:
            return picks
        picks[owner[step]] = step
