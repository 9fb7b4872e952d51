"""Recipes: names for frozen sets of stage choices, so that a comparison is one word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """
    What is done to every group of linears in a block, in this order: token weights, equalization, grid, rounding.

    Attributes:
        token_weights: who says how much a token counts in the searches; `"uniform"`; `"qig"` (arXiv
            2603.17809); `"shuffled"`, QIG's weights dealt out at random among a sample's tokens, the control for it.
        nodes: points of QIG's integral on the path, where it has no closed form.
        equalization: search a channel-wise scale on a `grid_points` grid and fold it into the producer.
        grid_points: candidates of that search.
        share_channels: also equalize where several input columns come from one channel of the producer (GQA: a value
            head is read by many query heads); the paper leaves those groups alone.
        clipping: search per group of weights how far the range of the grid may shrink.
        include_zero: widen the grid's range so that it always holds zero.
        do_no_harm: keep a choice only if the block's output error falls on samples held back from the search.
    """

    token_weights: Literal["uniform", "qig", "shuffled"] = "uniform"
    nodes: int = 8
    equalization: bool = False
    grid_points: int = 20
    share_channels: bool = False
    clipping: bool = False
    include_zero: bool = False
    do_no_harm: bool = False

    @property
    def calibrates(self) -> bool:
        """Whether the recipe looks at data at all."""
        return self.equalization or self.clipping


RECIPES: dict[str, Recipe] = {
    # Round to nearest on min/max grids: the baseline of every comparison; reads no data.
    "rtn": Recipe(),
    # The paper to the letter: QIG with the quantized stream as baseline, IQR clip, 20-point MAE grid, nearest.
    "paper": Recipe(token_weights="qig", equalization=True),
    # Uniform token weights: with QIG's the answers were no better (benchmarks/results), and it takes twice the time.
    # Half the paper's grid points (and nodes, should QIG be asked for) lost nothing either.
    "fast": Recipe(
        nodes=4,
        equalization=True,
        grid_points=10,
        share_channels=True,
        clipping=True,
        include_zero=True,
        do_no_harm=True,
    ),
}
