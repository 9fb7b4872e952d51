"""The page of `transformers-qaig plan`: predicted loss against size, and what one bit less costs each layer."""

from __future__ import annotations

from collections.abc import Sequence

from ...plan.front import Front, Point
from ...plan.width_costs import OneBitLess
from .marginal import marginal_section
from .markup import escaped, section
from .page import document, front_chart


def plan_page(model: str, front: Front, cost: str, layers: Sequence[OneBitLess], bits: int) -> str:
    """Returns the page.

    Args:
        model: its name.
        front: the best plans at several sizes.
        cost: how loss was predicted.
        layers: what one bit less costs them.
        bits: from how many.
    """
    prices = {
        "cost": cost, "knee": front.knee, "chosen": None,
        "front": [_point(point) for point in front.points], "uniform": [_point(point) for point in front.uniform],
    }  # fmt: skip
    body = [
        f"<h1>{escaped(model)}: what a bit buys</h1>",
        section("Predicted loss against size", front_chart(prices)),
        marginal_section(layers, bits),
    ]
    return document(f"{model}: what a bit buys", body, None)


def _point(point: Point) -> list[float]:
    return [point.bits, point.size, point.loss]
