"""Chooses how many bits each weight gets: a multiple-choice knapsack under a budget of stored bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..formats.scheme import Plan, WeightScheme
from .knapsack import knapsack

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""Linears that serving engines fuse into one, which has one scheme; the last two are of linear attention."""


@dataclass(frozen=True)
class SchemeOption:
    """One way to store one weight, or several that must be stored alike.

    Attributes:
        scheme: how it is stored; None: it stays as it is.
        size: stored bits: codes, scales and zero points; of a weight that stays as it is all of its bits.
        cost: predicted loss, in any unit that adds up.
        elements: of the weight; only one that stays as it is must tell.
    """

    scheme: WeightScheme | None
    size: int
    cost: float
    elements: int = 0

    @property
    def bits(self) -> int:
        """Bits of a code, or of an element that stays as it is."""
        return self.size // self.elements if self.scheme is None else self.scheme.bits


Options = Mapping[str, Sequence[SchemeOption]]
"""Weight path → ways to store it."""


def schemes_of(choices: Iterable[SchemeOption]) -> list[WeightScheme]:
    """Returns the schemes among a weight's options, without staying as it is."""
    return [option.scheme for option in choices if option.scheme is not None]


def option_at(choices: Sequence[SchemeOption], bits: int) -> SchemeOption:
    """Returns the option with these bits; the first one of a weight that has none, such as one with an override."""
    return next((option for option in choices if option.scheme and option.scheme.bits == bits), choices[0])


@dataclass(frozen=True)
class Allocation:
    """A way to store every weight.

    Attributes:
        chosen: weight path → the chosen option.
    """

    chosen: Mapping[str, SchemeOption]

    @property
    def schemes(self) -> Plan:
        """Weight path → how it is stored, without weights that stay as they are."""
        return {path: option.scheme for path, option in self.chosen.items() if option.scheme is not None}

    @property
    def size(self) -> int:
        """Stored bits of all of them."""
        return sum(option.size for option in self.chosen.values())

    @property
    def cost(self) -> float:
        """Predicted loss of all of them."""
        return float(sum(option.cost for option in self.chosen.values()))

    @property
    def widths(self) -> dict[int, int]:
        """Bits → how many weights have them, bits rising."""
        return dict(sorted(Counter(option.bits for option in self.chosen.values()).items()))


def allocate(options: Options, budget: float, fused: Iterable[Sequence[str]] = ()) -> Allocation:
    """Finds the choice of least total cost whose total size does not exceed the budget.

        min Σ_m Σ_o cost_mo z_mo   with   Σ_o z_mo = 1,   Σ_m Σ_o size_mo z_mo ≤ budget,   z binary

    Args:
        options: weight path → ways to store it, at least one.
        budget: stored bits.
        fused: sets of paths that must get equal schemes. Only schemes that all of them have are left to choose from.

    Returns:
        a choice whose excess cost is within 1e-5 of the least possible; 1e-4 where there are more than 2000 to make.
        Excess is over every weight's cheapest option.

    Raises:
        ValueError: the budget is below the smallest choice (the message gives the reachable range); a cost is not
            finite; or fused paths have no common scheme.
    """
    units = _units(options, fused)
    sizes = [np.array([option.size for option in choices], float) for _, choices in units]
    costs = [np.array([option.cost for option in choices], float) for _, choices in units]
    for (paths, _), cost in zip(units, costs):
        if not np.isfinite(cost).all():
            raise ValueError(f"a cost of {paths[0]!r} is not finite: {cost.tolist()}.")
    least, most = reachable(options, fused)
    if budget < least:
        raise ValueError(f"a budget of {budget:,.0f} stored bits cannot be met: {least:,} to {most:,} can.")
    picks = knapsack(sizes, costs, budget)
    return _allocation(options, ((paths, choices[pick].scheme) for (paths, choices), pick in zip(units, picks)))


def _allocation(options: Options, taken: Iterable[tuple[list[str], WeightScheme | None]]) -> Allocation:
    """Returns the options with the schemes that were taken for paths that are decided together."""
    schemes = {path: scheme for paths, scheme in taken for path in paths}
    return Allocation(
        {path: next(one for one in choices if one.scheme == schemes[path]) for path, choices in options.items()}
    )


def reachable(options: Options, fused: Iterable[Sequence[str]] = ()) -> tuple[int, int]:
    """Returns the stored bits of the smallest and of the largest choice."""
    units = _units(options, fused)
    return (
        sum(min(option.size for option in choices) for _, choices in units),
        sum(max(option.size for option in choices) for _, choices in units),
    )


def only_choice(options: Options, budget: float, fused: Iterable[Sequence[str]] = ()) -> Allocation | None:
    """Returns what needs no cost: all weights' largest options if they fit, their smallest if nothing larger fits.

    None if there is more than one choice.
    """
    units = _units(options, fused)
    sizes = [sorted({option.size for option in choices}) for _, choices in units]
    if budget >= sum(each[-1] for each in sizes):
        pick = max
    elif budget < sum(each[0] for each in sizes) + min(each[1] - each[0] for each in sizes if len(each) > 1):
        pick = min
    else:
        return None
    taken = ((paths, pick(choices, key=lambda option: option.size).scheme) for paths, choices in units)
    return _allocation(options, taken)


def front(options: Options, fused: Iterable[Sequence[str]] = (), points: int = 33) -> list[Allocation]:
    """Samples the Pareto front: optimal allocations at `points` budgets, evenly from smallest to largest.

    Allocations that an earlier one matches in cost are left out. Sizes rise, costs fall.

    Args:
        options: weight path → ways to store it.
        fused: sets of paths that must get equal schemes.
        points: budgets to try.
    """
    fused = list(fused)
    least, most = reachable(options, fused)
    found: list[Allocation] = []
    for budget in np.linspace(least, most, points):
        allocation = allocate(options, float(budget) + 0.5, fused)
        if not found or (allocation.size > found[-1].size and allocation.cost < found[-1].cost):
            found.append(allocation)
    return found


def knee(sizes: Sequence[float], costs: Sequence[float]) -> int:
    """Returns the index of the point after which a bit buys less than on average.

    There the log of a falling, convex front is furthest below the line between its ends. Costs of zero or less count as
    the smallest positive one.

    Args:
        sizes: rising.
        costs: falling.
    """
    x, y = np.asarray(sizes, float), np.asarray(costs, float)
    if len(x) < 3 or not (y > 0).any():
        return 0
    y = np.log(np.maximum(y, y[y > 0].min()))
    line = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    return int(np.argmax(line - y))


def fused_sets(paths: Iterable[str]) -> list[list[str]]:
    """Returns the sets of siblings that serving engines fuse, by their names in [`FUSED`]; each has two or more."""
    groups: dict[tuple[str, int], list[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        for number, names in enumerate(FUSED):
            if name in names:
                groups.setdefault((parent, number), []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _units(options: Options, fused: Iterable[Sequence[str]]) -> list[tuple[list[str], list[SchemeOption]]]:
    """Groups paths that are decided together, with the sums of their options."""
    sets = [list(group) for group in fused]
    member = {path: number for number, group in enumerate(sets) for path in group}
    units = [([path], list(choices)) for path, choices in options.items() if path not in member]
    for group in sets:
        joint = []
        for option in options[group[0]]:
            same = [[o for o in options[path] if o.scheme == option.scheme] for path in group]
            if all(same):
                joint.append(SchemeOption(option.scheme, sum(o[0].size for o in same), sum(o[0].cost for o in same)))
        if not joint:
            raise ValueError(f"{', '.join(group)} are to be stored alike, and have no option in common.")
        units.append((group, joint))
    for paths, choices in units:
        if not choices:
            raise ValueError(f"{paths[0]!r} has no option to choose from.")
    return units


def describe(allocation: Allocation, options: Options, budget: float, fused: Sequence[Sequence[str]] = ()) -> str:
    """Describes an allocation in one or two lines for the log: the widths chosen, and what fused paths cost."""
    counts = ", ".join(f"{count} x {bits} bits" for bits, count in allocation.widths.items())
    text = f"qaig: {counts}; {allocation.size / budget:.1%} of the budget used; predicted loss {allocation.cost:.3g}"
    if not fused:
        return text
    free = allocate(options, budget)
    return (
        f"{text}\n  kept at one width: {len(fused)} sets of linears; without that the predicted loss is {free.cost:.3g}"
    )
