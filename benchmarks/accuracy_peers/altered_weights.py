"""
QIG's token weights, altered, for a recipe that rounds by GPTQ. `NAME-KIND` is recipe NAME with one of `ALTERATIONS`.

After its clip λ differs little from token to token. So it is made steeper, or pictures and text alike in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from torch import Tensor

from transformers_qaig.token_weights import registry
from transformers_qaig.token_weights.base import Stateless, SubBlock
from transformers_qaig.token_weights.precomputed import weights_at_rows
from transformers_qaig.token_weights.qig import QIG


def by_kind(weights: Tensor, vision: Tensor) -> Tensor:
    """λ over its mean at the pictures' tokens, and over that at the others': λ [T], `vision` bool [T]."""
    result = weights.clone()
    for tokens in (vision, ~vision):
        if weights[tokens].sum() > 0:
            result[tokens] /= weights[tokens & (weights > 0)].mean()
    return result


ALTERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "qig-squared": lambda weights, vision: weights.square(),
    "qig-by-kind": by_kind,
}


class Altered(Stateless):
    """QIG's weights, altered by the pictures' tokens: bool [B, T] by sample."""

    def __init__(self, kind: str, inner: QIG, pictures: Sequence[Tensor]):
        self.kind, self.inner, self.pictures = kind, inner, pictures

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        found = []
        for inputs, weights in zip(sub_block.inputs, self.inner.weigh(sub_block)):
            rows = replace(inputs, token_weights=weights).first_sequence_weights().items()
            altered = {s: ALTERATIONS[self.kind](row, self.pictures[s].reshape(-1)) for s, row in rows}
            found.append(weights_at_rows(inputs, altered))
        return found


@contextmanager
def altered(kind: str) -> Iterator[None]:
    """Within the context, calibration with token weights `"qig"` alters them so."""

    def made(recipe: Any, seed: int, pictures: Any) -> Altered:
        return Altered(kind, QIG(recipe.ig_steps), pictures)

    with patch.dict(registry.PRECOMPUTED, qig=lambda data: data.pictures), patch.dict(registry.KINDS, qig=made):
        yield
