"""Keeps the first calibration samples in a form to look at: words, small pictures, which tokens are a picture's."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .messages import Conversation, images_of, videos_of
from .tensors import text_name, token_mask

MOST_SAMPLES, MOST_TOKENS, MOST_PICTURES = 8, 1024, 4
LONGEST_WORD = 24
SIDE = 192
"""Pixels of a small picture's longer side."""


@dataclass(frozen=True)
class SampleView:
    """One calibration sample, for people.

    Attributes:
        index: of its record in the data set.
        tokens: how many real tokens it has.
        words: the text of each token, from the first; at most `MOST_TOKENS`.
        is_picture: whether each of them stands for an image patch.
        pictures: small JPEGs in base64, videos by their first frame.
        grid: (h, w) of the picture's tokens, row by row; None if they form no single grid.
    """

    index: int
    tokens: int
    words: Sequence[str]
    is_picture: Sequence[bool]
    pictures: Sequence[str] = ()
    grid: tuple[int, int] | None = None


@dataclass
class SampleViews:
    """Collects the views of the first samples, and the lengths of all.

    Attributes:
        picture_ids: of the tokens that stand for image patches.
        views: at most `MOST_SAMPLES`.
        lengths: real tokens of every sample.
    """

    picture_ids: Sequence[int] = ()
    views: list[SampleView] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, index: int, sample: Mapping[str, Tensor], processor: Any, conversation: Conversation | None) -> None:
        """Adds one sample.

        Args:
            index: of its record.
            sample: its model inputs.
            processor: the model's, for the words; may be None.
            conversation: what it was encoded from, for the pictures; None for a processor's output.
        """
        name = text_name(sample)
        ids = sample[name][0][token_mask(sample, name)[0]].tolist()
        self.lengths.append(len(ids))
        if len(self.views) >= MOST_SAMPLES:
            return
        known = set(self.picture_ids)
        is_picture = [token in known for token in ids]
        tokenizer = getattr(processor, "tokenizer", processor)
        pictures = [] if conversation is None else [*images_of(conversation), *(c[0] for c in videos_of(conversation))]
        self.views.append(
            SampleView(
                index,
                len(ids),
                ["" if p else _word(tokenizer, token) for token, p in zip(ids[:MOST_TOKENS], is_picture)],
                is_picture[:MOST_TOKENS],
                [small for picture in pictures[:MOST_PICTURES] if (small := thumbnail(picture))],
                _grid(sample, sum(is_picture)) if len(pictures) == 1 else None,
            )
        )


def _word(tokenizer: Any, token: int) -> str:
    try:
        return str(tokenizer.decode([token]))[:LONGEST_WORD]
    except Exception:  # no tokenizer, or ids of another one: a picture for people must not fail the run
        return str(token)


def thumbnail(picture: Image.Image) -> str:
    """Returns a small JPEG in base64; "" of a picture that cannot be drawn."""
    try:
        small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=70)
    except Exception:  # the processor took it, and that counts
        return ""
    return base64.b64encode(file.getvalue()).decode()


def _grid(sample: Mapping[str, Tensor], count: int) -> tuple[int, int] | None:
    """Returns the grid of a picture's tokens, if they fill one: as the sample says, else a square."""
    sizes = sample.get("image_grid_thw")
    if isinstance(sizes, torch.Tensor) and sizes.numel() == 3 and count:
        frames, height, width = sizes.flatten().tolist()
        merged = math.isqrt(height * width // count) if frames == 1 else 0
        if merged and height // merged * (width // merged) == count:
            return height // merged, width // merged
    side = math.isqrt(count)
    return (side, side) if count and side * side == count else None
