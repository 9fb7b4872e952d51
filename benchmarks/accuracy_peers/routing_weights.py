"""Other weights for the tokens of an expert's second moments. `NAME-KIND` is recipe NAME with one of `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

from torch import Tensor

from transformers_qaig.execution.routed_rows import RoutedRows

Chosen = tuple[Tensor, Tensor]
"""Positions of the tokens that count for an expert, and how much each one counts."""


def _of(rows: RoutedRows, expert: int, power: int) -> Chosen:
    token, slot = ((rows.index == expert) & (rows.token_weights > 0)[:, None]).nonzero(as_tuple=True)
    return token, rows.token_weights[token] * rows.weights[token, slot] ** power


def _all(rows: RoutedRows, expert: int) -> Chosen:
    token = rows.token_weights.nonzero().flatten()
    return token, rows.token_weights[token]


KINDS: dict[str, Callable[[RoutedRows, int], Chosen]] = {
    "routing-unweighted": partial(_of, power=0),
    "routing-linear": partial(_of, power=1),
    "routing-square": partial(_of, power=2),
    "routing-all": _all,
}
"""Routed tokens alike; by their routing weight; by its square, the share of their error in the output; all tokens."""


@contextmanager
def weighed_by_routing(kind: str) -> Iterator[None]:
    """Within the context, the tokens of an expert count as `kind` says."""
    with patch.object(RoutedRows, "of", lambda rows, expert: KINDS[kind](rows, expert)):
        yield
