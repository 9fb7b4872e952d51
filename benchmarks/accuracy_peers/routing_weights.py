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

Chosen = tuple[Tensor, Tensor]
"""Positions of the tokens that count for an expert, and how much each one counts."""


def _unweighted(rows: RoutedRows, expert: int) -> Chosen:
    token, _ = ((rows.index == expert) & rows.mask[:, None]).nonzero(as_tuple=True)
    return token, torch.ones(len(token))


def _linear(rows: RoutedRows, expert: int) -> Chosen:
    token, slot = ((rows.index == expert) & rows.mask[:, None]).nonzero(as_tuple=True)
    return token, rows.weights[token, slot]


def _all(rows: RoutedRows, expert: int) -> Chosen:
    (token,) = rows.mask.nonzero(as_tuple=True)
    return token, torch.ones(len(token))


KINDS: dict[str, Callable[[RoutedRows, int], Chosen]] = {
    "routing-unweighted": _unweighted,
    "routing-linear": _linear,
    "routing-all": _all,
}


@contextmanager
def weighed_by_routing(kind: str) -> Iterator[None]:
    """Within the context, the tokens of an expert count as `kind` says."""
    with patch.object(RoutedRows, "of", KINDS[kind]):
        yield
