"""
QIG's token weights, altered, for a recipe that rounds by GPTQ. `NAME-KIND` is recipe NAME with one of `ALTERATIONS`.

After its clip λ differs little from token to token. So it is made steeper, or pictures and text alike in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from transformers_qaig.calibration import pipeline as calibrate
from transformers_qaig.calibration.decisions import BlockDecisions
from transformers_qaig.calibration.steps import GroupContext
from transformers_qaig.token_weights.weigher import TokenWeigher, _spread


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


@contextmanager
def altered(kind: str) -> Iterator[None]:
    """Within the context, calibration with token weights `"qig"` alters them so."""
    old = calibrate.precomputed_weights, calibrate.TokenWeigher

    def pictures(
        model: Any, blocks: Any, samples: Any, masks: Any, answers: Any, vision: Sequence[Tensor], *_: Any
    ) -> Any:
        return vision

    class AlteredWeigher(TokenWeigher):
        """Its `given` are the pictures' tokens, bool [B, T] by sample."""

        def _attribute(self, site: GroupContext, choices: BlockDecisions) -> None:
            super()._attribute(site, choices)
            vision: Any = self.given
            for piece in site.pieces:
                found = {s: ALTERATIONS[kind](row, vision[s].reshape(-1)) for s, row in piece.importance().items()}
                piece.weights = _spread(piece, found)

    calibrate.precomputed_weights, calibrate.TokenWeigher = pictures, AlteredWeigher  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        calibrate.precomputed_weights, calibrate.TokenWeigher = old  # type: ignore[misc]
