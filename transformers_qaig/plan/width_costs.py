"""`WidthCosts`: the cost of each width of each layer, and of one bit less. Experts of one stack are added up."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .allocate import Allocation, Options, reachable
from .coverage import Coverage
from .front import Front, Point, even_budgets, front_of

POINTS, POINTS_OF_MANY, MANY = 17, 7, 4000
"""Budgets that are tried for the front; fewer where there are more than `MANY` weights to choose for."""
OTHER = "other"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class WidthCost:
    """What one width costs one layer, or all experts of a stack.

    Attributes:
        bits: of a code, or of an element that stays as it is.
        size: in bytes.
        loss: predicted.
    """

    bits: int
    size: float
    loss: float


@dataclass(frozen=True)
class WidthCosts:
    """What widths cost, and where a plan stands.

    Attributes:
        cost: how loss was predicted.
        layers: (block, name in the block) → its widths and their costs, widths rising.
        front: the best plans at several sizes.
        chosen: the plan that was taken; None if none was.
    """

    cost: str
    layers: Mapping[tuple[str, str], Sequence[WidthCost]]
    front: Front | None = None
    chosen: Point | None = None


def split_layer(path: str) -> tuple[str, str]:
    """Splits a weight's path into its block and its name there, in which the number of an expert is `*`.

    `model.layers.3.mlp.experts.17.up_proj` becomes `("model.layers.3", "mlp.experts.*.up_proj")`. Outside of blocks
    the parent stands for the block.
    """
    found = _NUMBER.search(path)
    if found is None:
        parent, _, name = path.rpartition(".")
        return (parent, name) if parent else (path, "")
    return path[: found.end()], _NUMBER.sub("*", path[found.end() :]).removeprefix(".")


def costs_by_layer(options: Options) -> dict[tuple[str, str], list[WidthCost]]:
    """Adds up the options of the experts of each stack: (block, name in the block) → its widths, rising."""
    sums: dict[tuple[str, str], dict[int, WidthCost]] = {}
    for path, choices in options.items():
        layer = sums.setdefault(split_layer(path), {})
        for option in choices:
            bits = option.bits
            known = layer.get(bits, WidthCost(bits, 0.0, 0.0))
            layer[bits] = WidthCost(bits, known.size + option.size / 8, known.loss + option.cost)
    return {layer: [costs[bits] for bits in sorted(costs)] for layer, costs in sums.items()}


def width_costs(
    cost: str, options: Options, allocation: Allocation, coverage: Coverage, fused: Sequence[Sequence[str]]
) -> WidthCosts:
    """Describes the choice under a budget.

    Args:
        cost: name of the prediction.
        options: with their costs.
        allocation: the choice.
        coverage: has the size of the rest of the model.
        fused: sets of weights that are stored alike.
    """
    layers, chosen = costs_by_layer(options), Point.of(allocation, coverage)
    least, most = reachable(options, fused)
    count = POINTS if len(options) <= MANY else POINTS_OF_MANY
    return WidthCosts(cost, layers, front_of(options, coverage, even_budgets(least, most, count), fused), chosen)


@dataclass(frozen=True)
class OneBitLess:
    """What one bit less costs a layer, or all experts of a stack.

    Attributes:
        block, name: where the layer is.
        part: of the model.
        loss: predicted, of one bit less.
        saved: bytes that it saves.
    """

    block: str
    name: str
    part: str
    loss: float
    saved: float

    @property
    def rate(self) -> float:
        """The loss for each megabyte that it saves; 0 if it saves nothing."""
        return loss_per_megabyte(self.loss, self.saved)


def loss_per_megabyte(loss: float, saved: float) -> float:
    """Returns the loss for each megabyte, of `saved` bytes; 0 for no bytes."""
    return loss / (saved / 1e6) if saved else 0.0


def one_bit_less(options: Options, bits: int, part_of: Mapping[str, str]) -> list[OneBitLess]:
    """Returns what a bit less than `bits` costs every layer.

    Between widths that are further apart the loss is shared out evenly. A layer without such a pair is left out.

    Args:
        options: with their costs.
        bits: to start from.
        part_of: beginning of a path → name of the part; the longest counts.
    """
    found = []
    for (block, name), costs in costs_by_layer(options).items():
        above = _from_width(costs, bits)
        if above is None:
            continue
        below = costs[costs.index(above) - 1]
        steps = above.bits - below.bits
        part = _part(f"{block}.{name}", part_of)
        found.append(
            OneBitLess(block, name, part, (below.loss - above.loss) / steps, (above.size - below.size) / steps)
        )
    return found


def _from_width(costs: Sequence[WidthCost], bits: int) -> WidthCost | None:
    """Returns the width nearest to `bits`, of those that have one below."""
    return min(costs[1:], key=lambda cost: (abs(cost.bits - bits), cost.bits), default=None)


def _part(path: str, part_of: Mapping[str, str]) -> str:
    above = [start for start in part_of if f"{path}.".startswith(f"{start}.")]
    return part_of[max(above, key=len)] if above else OTHER


def by_part(layers: Sequence[OneBitLess]) -> list[tuple[str, float, float]]:
    """Adds up loss and saved bytes of each part, the largest loss first."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for layer in layers:
        sums[layer.part][0] += layer.loss
        sums[layer.part][1] += layer.saved
    return sorted(((part, loss, saved) for part, (loss, saved) in sums.items()), key=lambda row: -row[1])
