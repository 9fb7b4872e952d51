"""Balanced token weights: a picture's tokens weigh as much as the others together."""

from __future__ import annotations

from torch import Tensor

from .base import BlockWeights
from .data import WeightingData


def balanced(data: WeightingData) -> BlockWeights:
    """Returns the same weights for every block: a picture's tokens and the others have the same sum."""
    by_sample = {s: _balanced(mask, v) for s, (mask, v) in enumerate(zip(data.masks, data.pictures))}
    return dict.fromkeys(data.blocks, by_sample)


def _balanced(mask: Tensor, picture: Tensor) -> Tensor:
    """Returns weights of mean 1 over real tokens, half of their sum at the picture's."""
    at_picture, other = mask & picture, mask & ~picture
    if not at_picture.any() or not other.any():
        return mask.float()
    half = mask.sum() / 2
    return at_picture * (half / at_picture.sum()) + other * (half / other.sum())
