"""Other weights for the tokens of an expert's second moments. `NAME-KIND` is recipe NAME with one of `KINDS`.

The package takes the square of the routing weight: an expert's error enters the stack's output times that weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from transformers_qaig.calibration.experts import RoutedRows

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "routing-unweighted": torch.ones_like,
    "routing-linear": lambda weights: weights,
}
"""Name → what makes how much a token counts of its routing weight."""


@contextmanager
def weighed_by_routing(kind: str) -> Iterator[None]:
    """Within the context, the tokens of an expert count as `kind` says."""

    def tokens_of(rows: RoutedRows, expert: int) -> tuple[Tensor, Tensor]:
        token, slot = ((rows.index == expert) & rows.mask[:, None]).nonzero(as_tuple=True)
        return token, KINDS[kind](rows.weights[token, slot])

    with patch.object(RoutedRows, "of", tokens_of):
        yield
