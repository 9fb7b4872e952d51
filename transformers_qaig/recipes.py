"""Recipes: names for frozen sets of stage choices, so that a comparison is one word."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from .utils.quote import quote

TokenWeights = Literal["uniform", "qig", "qig-zero", "shuffled", "balanced", "gradient", "mbq", "authors"]


@dataclass(frozen=True)
class Recipe:
    """
    What is done to a block, group of linears by group of linears: token weights, equalization, grid, rounding.

    Attributes:
        token_weights: who says how much a token counts in the searches; `"uniform"`; `"qig"` (arXiv 2603.17809, from
            the quantized stream's input), `"qig-zero"` (the same from zero); `"shuffled"`, QIG's weights dealt out at
            random among a sample's tokens, the control for it; `"authors"`, QIG as in the paper's code; `"balanced"`,
            picture and text alike in sum; `"gradient"`, by the gradient of the answers' loss; `"mbq"`, answers 1,
            pictures by the ratio of gradients, others nothing.
        nodes: points of QIG's integral on the path, where it has no closed form.
        equalization: search a channel-wise scale on a `grid_points` grid and fold it into the producer, by mean
            absolute (`"mae"`) or squared error (`"mse"`) of the sub-block's output.
        equalization_bits: weights that are stored in more bits are not equalized.
        grid_points: candidates of that search.
        share_channels: also equalize where several input columns come from one channel of the producer (GQA: a value
            head is read by many query heads); the paper leaves those groups alone.
        clipping: search per group of weights how far the range of the grid may shrink.
        include_zero: widen the grid's range so that it always holds zero.
        rounding: `"nearest"`; `"gptq"`, column by column, each making up for those before; `"learned"`, from there on
            by gradients of the block's output error.
        drift: share, 0 to 1, of the drift between full-precision and quantized inputs that GPTQ's target makes up for.
        steps: of learned rounding.
        rotation: rotate the linears' inputs (`transformers_qaig.nn.hadamard`): `"none"`, `"all"`, or `"a8"`: where they
            are rounded to 8 bits.
        do_no_harm: keep a choice only if the block's output error falls on samples held back from the search.
    """

    token_weights: TokenWeights = "uniform"
    nodes: int = 8
    equalization: Literal["none", "mae", "mse"] = "none"
    equalization_bits: int = 8
    grid_points: int = 20
    share_channels: bool = False
    clipping: bool = False
    include_zero: bool = False
    rounding: Literal["nearest", "gptq", "learned"] = "nearest"
    drift: float = 0.0
    steps: int = 100
    rotation: Literal["none", "a8", "all"] = "none"
    do_no_harm: bool = False

    @property
    def reads_answers(self) -> bool:
        """Whether the token weights depend on which tokens are answers."""
        return self.token_weights in ("gradient", "mbq", "authors")

    @property
    def calibrates(self) -> bool:
        """Whether the recipe looks at data at all."""
        return self.equalization != "none" or self.clipping or self.rounding != "nearest"


RECIPES: dict[str, Recipe] = {
    # Round to nearest on min/max grids: the baseline of every comparison; reads no data.
    "rtn": Recipe(),
    # The paper to the letter: QIG with the quantized stream as baseline, IQR clip, 20-point MAE grid, nearest.
    "paper": Recipe(token_weights="qig", equalization="mae"),
    # What the paper's code does, where that is something else: for reproduction.
    "authors": Recipe(token_weights="authors", equalization="mae"),
    # Baselines from the literature on the same grids.
    "awq": Recipe(equalization="mse"),
    "mbq": Recipe(token_weights="mbq", equalization="mae"),
    "gptq": Recipe(rounding="gptq"),
    # Uniform token weights: with QIG's the answers were no better (benchmarks/results), and it takes twice the time.
    # Half the paper's grid points (and nodes, should QIG be asked for) lost nothing either. At 4 bits equalization made
    # clipped grids worse: less error at the pictures' tokens, which are most, and more in the answers.
    "fast": Recipe(
        nodes=4,
        equalization="mae",
        equalization_bits=3,
        grid_points=10,
        share_channels=True,
        clipping=True,
        include_zero=True,
        do_no_harm=True,
    ),
    "default": Recipe(
        nodes=4, clipping=True, include_zero=True, rounding="gptq", drift=1.0, rotation="a8", do_no_harm=True
    ),
    "best": Recipe(
        nodes=4, clipping=True, include_zero=True, rounding="learned", drift=1.0, rotation="a8", do_no_harm=True
    ),
}


def recipe_of(name: str, stages: Mapping[str, Any] | None = None) -> Recipe:
    """
    The recipe called `name`, with the choices in `stages` made otherwise.

    Args:
        name: a key of `RECIPES`.
        stages: attribute of [`Recipe`] → value.

    Raises:
        ValueError: an unknown name or attribute, or a value that the attribute does not take.
    """
    if name not in RECIPES:
        raise ValueError(f"`recipe` must be one of {sorted(RECIPES)}, got {quote(name)}.{_hint(name, RECIPES)}")
    types = get_type_hints(Recipe)
    for key, value in (stages or {}).items():
        if key not in types:
            known = [field.name for field in fields(Recipe)]
            raise ValueError(f"`stages` has no {quote(key)}; known are {', '.join(known)}.{_hint(key, known)}")
        choices = get_args(types[key])
        if choices and value not in choices:
            raise ValueError(f"stages[{quote(key)}] must be one of {list(choices)}, got {quote(value)}.")
        if not choices and not _TAKES[types[key]][0](value):
            wanted = _TAKES[types[key]][1]
            raise ValueError(f"stages[{quote(key)}] must be {wanted}, got {quote(value)}.")
    return replace(RECIPES[name], **(stages or {}))


_TAKES = {
    bool: (lambda value: isinstance(value, bool), "True or False"),
    int: (lambda value: type(value) is int and value > 0, "a positive integer"),
    float: (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
}


def _hint(word: str, known: Any) -> str:
    near = difflib.get_close_matches(str(word), known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
