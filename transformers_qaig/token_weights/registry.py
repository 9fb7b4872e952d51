"""Makes token weights by the name that a recipe has."""

from __future__ import annotations

from collections.abc import Callable

from ..config.recipes import Recipe
from ..utils.logging import get_logger
from .balanced import balanced
from .base import BlockWeights, Flattened, TokenWeights
from .data import WeightingData
from .gradient import gradient
from .mbq import mbq
from .official_code import OfficialCode, pictures_and_answers
from .precomputed import Precomputed
from .qig import QIG, Shuffled
from .uniform import Uniform

logger = get_logger(__name__)

PRECOMPUTED: dict[str, Callable[[WeightingData], BlockWeights]] = {
    "balanced": balanced,
    "gradient": gradient,
    "mbq": mbq,
    "authors": pictures_and_answers,
}
"""Kinds that need something computed before the first block is quantized."""

KINDS: dict[str, Callable[[Recipe, int, BlockWeights | None], TokenWeights]] = {
    "uniform": lambda recipe, seed, known: Uniform(),
    "qig": lambda recipe, seed, known: QIG(recipe.ig_steps),
    "qig-zero": lambda recipe, seed, known: QIG(recipe.ig_steps, from_zero=True),
    "shuffled": lambda recipe, seed, known: Shuffled(QIG(recipe.ig_steps), seed),
    "balanced": lambda recipe, seed, known: Precomputed(known),
    "gradient": lambda recipe, seed, known: Precomputed(known),
    "mbq": lambda recipe, seed, known: Precomputed(known),
    "authors": lambda recipe, seed, known: OfficialCode(known),
}
"""Every kind: made from a recipe, a seed, and what was computed before."""


def precompute(recipe: Recipe, data: WeightingData) -> BlockWeights | None:
    """Computes what `recipe`'s token weights need in advance; None if nothing, or if there are no samples."""
    kind = recipe.token_weights
    if kind not in PRECOMPUTED or not data.samples:
        return None
    if kind != "gradient" and not any(bool(picture.any()) for picture in data.pictures):
        logger.warning("token_weights=%r: no token of the calibration set is known to be a picture's.", kind)
    return PRECOMPUTED[kind](data)


def token_weights_of(recipe: Recipe, seed: int = 0, known: BlockWeights | None = None) -> TokenWeights:
    """Makes the token weights that a recipe names.

    Args:
        recipe: its kind of weights, and whether they are for second moments too.
        seed: of what is random.
        known: from [`precompute`].
    """
    weights = KINDS[recipe.token_weights](recipe, seed, known)
    return weights if recipe.rounding == "nearest" else Flattened(weights)
