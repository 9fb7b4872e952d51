"""Recipes: names for fixed sets of quantization settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from ..utils.quote import quote
from ..utils.suggestion import did_you_mean
from .misplaced import register_settings, remedy

TokenWeights = Literal["uniform", "qig", "qig-zero", "shuffled", "balanced", "gradient", "mbq", "authors"]
CUSTOM = "custom"
"""The name of a recipe that starts from round-to-nearest, not from one in `RECIPES`."""
NAMES = ("rtn", "paper", "authors", "awq", "mbq", "gptq", "fast", "default", "best")
"""The keys of `RECIPES`."""
RENAMED = {
    "drift": "asymmetric",
    "nodes": "ig_steps",
    "share_channels": "equalize_gqa",
    "do_no_harm": "validate",
}
"""Attributes as release 0.1 called and saved them."""


@dataclass(frozen=True)
class Recipe:
    """How a block is quantized, group of linears by group of linears: token weights, equalization, grid, rounding.

    Attributes:
        name: of the recipe in `RECIPES` that this one starts from; `"custom"`: from round-to-nearest.
        token_weights: how much each token counts in the searches. `"uniform"`: the same; `"qig"`: arXiv 2603.17809,
            from the quantized model's input; `"qig-zero"`: QIG from zero; `"shuffled"`: QIG's weights shuffled among a
            sample's tokens, as its control; `"authors"`: QIG as in the paper's code; `"balanced"`: picture and text
            alike in sum; `"gradient"`: by the gradient of the answers' loss; `"mbq"`: answers 1, pictures by the ratio
            of gradients, others 0.
        ig_steps: points of QIG's integral on the path, where it has no closed form.
        equalization: search a channel-wise scale on a `grid_points` grid and fold it into the producer, by mean
            absolute (`"mae"`) or squared error (`"mse"`) of the sub-block's output; `"none"`: do not.
        equalization_bits: weights that are stored in more bits are not equalized.
        grid_points: candidates of that search.
        equalize_gqa: also equalize where several input columns come from one channel of the producer (GQA: many query
            heads read one value head); the paper leaves those groups alone.
        clipping: search how far to shrink the grid's range, per quantization group.
        include_zero: widen the grid's range so that it always holds zero.
        rounding: `"nearest"`; `"gptq"`: column by column, with compensation; `"learned"`: from GPTQ's result on by
            gradients of the block's output error.
        asymmetric: share, 0 to 1, of the shift between full-precision and quantized inputs that GPTQ's target
            compensates (asymmetric calibration, GPTAQ, arXiv 2504.02692).
        steps: of learned rounding; learning end to end takes twice as many.
        end_to_end: once all blocks are quantized, learn all scales of the language model together by the divergence of
            its answers from those in full precision; codes stay.
        own_answers: draw samples for it from the full model, too: answers to the questions of the calibration data.
        rotation: rotate the linears' inputs (`transformers_qaig.formats.hadamard`): `"none"`, `"all"`, or `"a8"`: where
            they are rounded to 8 bits.
        attributed_widths: where neither `bits` nor a budget nor a plan says widths, choose them by what they cost the
            answers: in all they take no more than 4 bits for all.
        validate: keep a choice only if the block's output error falls on samples held back from the search.

    Raises:
        ValueError: a value that an attribute does not take.
    """

    name: str = CUSTOM
    token_weights: TokenWeights = "uniform"
    ig_steps: int = 8
    equalization: Literal["none", "mae", "mse"] = "none"
    equalization_bits: int = 8
    grid_points: int = 20
    equalize_gqa: bool = False
    clipping: bool = False
    include_zero: bool = False
    rounding: Literal["nearest", "gptq", "learned"] = "nearest"
    asymmetric: float = 0.0
    steps: int = 100
    end_to_end: bool = False
    own_answers: bool = False
    rotation: Literal["none", "a8", "all"] = "none"
    validate: bool = False
    attributed_widths: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in (*NAMES, CUSTOM):
            hint = did_you_mean(self.name, NAMES)
            raise ValueError(
                f"`recipe`: `name` must be one of {sorted(NAMES)} or {CUSTOM!r}, got {quote(self.name)}.{hint}"
            )
        for name, kind in _TYPES.items():
            _check(name, getattr(self, name), kind)

    @property
    def reads_answers(self) -> bool:
        """Whether the token weights depend on which tokens are answers."""
        return self.token_weights in ("gradient", "mbq", "authors")

    @property
    def calibrates(self) -> bool:
        """Whether the recipe reads calibration data."""
        return self.equalization != "none" or self.clipping or self.rounding != "nearest" or self.end_to_end

    @property
    def changes(self) -> dict[str, Any]:
        """The attributes that differ from those of the recipe called `name`."""
        base = Recipe() if self.name == CUSTOM else RECIPES[self.name]
        return {name: getattr(self, name) for name in _TYPES if getattr(self, name) != getattr(base, name)}

    @property
    def without_effect(self) -> dict[str, str]:
        """The attributes among `changes` that nothing reads, each with what they need to be read."""
        learned, gptq = self.rounding == "learned", self.rounding != "nearest"
        read = {
            "steps": (learned or self.end_to_end, "`rounding='learned'` or `end_to_end=True`"),
            "own_answers": (self.end_to_end, "`end_to_end=True`"),
            "asymmetric": (gptq, "`rounding='gptq'` or `'learned'`"),
            "ig_steps": (self.token_weights in ("qig", "qig-zero", "shuffled"), "`token_weights='qig'`"),
            "token_weights": (self.calibrates, "`equalization`, `clipping` or `rounding`"),
            "validate": (self.calibrates, "`equalization`, `clipping` or `rounding`"),
            **dict.fromkeys(
                ("equalization_bits", "grid_points", "equalize_gqa"),
                (self.equalization != "none", "`equalization='mae'` or `'mse'`"),
            ),
        }
        return {name: needs for name, (is_read, needs) in read.items() if name in self.changes and not is_read}

    def to_dict(self) -> str | dict[str, Any]:
        """Returns what config.json holds: the name, or a dict of the name and what differs."""
        changes = self.changes
        return {"name": self.name, **changes} if changes or self.name == CUSTOM else self.name

    def __str__(self) -> str:
        changes = ", ".join(f"{name}={value!r}" for name, value in self.changes.items())
        return f"{self.name} with {changes}" if changes else self.name


_TYPES = {name: kind for name, kind in get_type_hints(Recipe).items() if name != "name"}
register_settings("Recipe", _TYPES)
_TAKES = {
    bool: (lambda value: isinstance(value, bool), "True or False"),
    int: (lambda value: type(value) is int and value > 0, "a positive integer"),
    float: (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
}


def _check(name: str, value: object, kind: Any) -> None:
    choices = get_args(kind)
    if choices and value not in choices:
        raise ValueError(f"`recipe`: `{name}` must be one of {list(choices)}, got {quote(value)}.")
    if not choices and not _TAKES[kind][0](value):
        raise ValueError(f"`recipe`: `{name}` must be {_TAKES[kind][1]}, got {quote(value)}.")


RECIPES: dict[str, Recipe] = {
    # Round to nearest on min/max grids: the baseline of every comparison; reads no data.
    "rtn": Recipe("rtn"),
    # The paper's method: QIG with the quantized model's input as baseline, IQR clip, 20-point MAE grid, nearest.
    "paper": Recipe("paper", token_weights="qig", equalization="mae"),
    # The paper's code, where it differs from the paper: for reproduction.
    "authors": Recipe("authors", token_weights="authors", equalization="mae"),
    # Baselines from the literature on the same grids.
    "awq": Recipe("awq", equalization="mse"),
    "mbq": Recipe("mbq", token_weights="mbq", equalization="mae"),
    "gptq": Recipe("gptq", rounding="gptq"),
    # Uniform token weights: with QIG's the answers were no better (benchmarks/results), and it takes twice the time.
    # Half the paper's grid points (and steps, should QIG be asked for) lost nothing either. At 4 bits equalization made
    # clipped grids worse: less error at the pictures' tokens, which are most, and more in the answers.
    "fast": Recipe(
        "fast",
        ig_steps=4,
        equalization="mae",
        equalization_bits=3,
        grid_points=10,
        equalize_gqa=True,
        clipping=True,
        include_zero=True,
        validate=True,
    ),
    "default": Recipe(
        "default",
        ig_steps=4,
        clipping=True,
        include_zero=True,
        rounding="gptq",
        asymmetric=1.0,
        rotation="a8",
        validate=True,
        attributed_widths=True,
    ),
    "best": Recipe(
        "best",
        ig_steps=4,
        clipping=True,
        include_zero=True,
        rounding="learned",
        asymmetric=1.0,
        end_to_end=True,
        own_answers=True,
        rotation="a8",
        validate=True,
        attributed_widths=True,
    ),
}


def recipe_of(recipe: str | Mapping[str, Any] | Recipe, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Returns the recipe that a configuration asks for.

    Args:
        recipe: a key of `RECIPES`, a [`Recipe`], or a mapping of attributes to change. A mapping may have the `"name"`
            of the recipe that they change; `"default"` if not.
        changes: more attributes to change.

    Raises:
        ValueError: an unknown name or attribute, or a value that the attribute does not take.
    """
    if isinstance(recipe, Recipe):
        return replace(recipe, **_known(changes or {}))
    if isinstance(recipe, Mapping):
        named = dict(recipe)
        return recipe_of(named.pop("name", "default"), {**_known(named), **_known(changes or {})})
    if not isinstance(recipe, str):
        raise ValueError(f"`recipe` must be a name, a Recipe or a mapping, got {quote(recipe)}.")
    if recipe not in RECIPES and recipe != CUSTOM:
        raise ValueError(
            f"`recipe` must be one of {sorted(RECIPES)}, got {quote(recipe)}.{did_you_mean(recipe, RECIPES)}"
        )
    return replace(RECIPES.get(recipe, Recipe()), **_known(changes or {}))


def _known(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes by today's names.

    Raises:
        ValueError: an attribute that no recipe has, or an old and a new name of one.
    """
    known: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in _TYPES and key not in RENAMED:
            raise ValueError(f"`recipe` has no {quote(key)}. {remedy(key, [*_TYPES, *RENAMED])}")
        name = RENAMED.get(key, key)
        if name in known:
            raise ValueError(f"`recipe` has both {quote(key)} and its other name: give `{name}` alone.")
        known[name] = value
    return known


def renamed(changes: object) -> dict[str, str]:
    """Returns the old names among the keys of a mapping, each with the new one."""
    return {key: RENAMED[key] for key in changes if key in RENAMED} if isinstance(changes, Mapping) else {}
