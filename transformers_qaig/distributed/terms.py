"""`Terms`: items on several ranks, which are added in one order whatever the number of ranks.

Addition in floating point depends on its order. So every term is computed by one rank, and the terms are added one by
one in the order of the samples. Large sums take turns: in a round every rank computes one term at most, and each rank
adds some rows of all terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from .ranks import ALONE, Ranks

T = TypeVar("T")
R = TypeVar("R")


class Terms(Generic[T]):
    """Items in an order, each on one rank.

    Args:
        mine: the items of this rank, in order; what is iterable may make them anew each time.
        owners: the rank of every item; None: all are this rank's.
        ranks: among which they are spread.
    """

    def __init__(self, mine: Iterable[T], owners: Sequence[int] | None = None, ranks: Ranks = ALONE):
        self.mine, self.owners, self.ranks = mine, list(owners or ()), ranks
        self._turns: list[int] = []

    def __iter__(self) -> Iterator[T]:
        """Yields the items of this rank."""
        return iter(self.mine)

    def then(self, others: Terms[T]) -> Terms[T]:
        """Returns these items, then others."""
        return Terms([*self.mine, *others.mine], [*self.owners, *others.owners], self.ranks)

    def of_each(self, compute: Callable[[T], R]) -> list[R]:
        """Returns what `compute` makes of each item, in order, on all ranks."""
        if self.ranks.size == 1:
            return [compute(item) for item in self.mine]
        places = [place for place, owner in enumerate(self.owners) if owner == self.ranks.rank]
        return self.ranks.of_each(zip(places, self.mine), compute)

    def in_rounds(self) -> Iterator[T | None]:
        """Yields an item of this rank in each round, or None if it has none; all ranks go through the same rounds."""
        if self.ranks.size == 1:
            yield from self.mine
            return
        waiting = iter(self.mine)
        for turns in _rounds(self.owners):
            self._turns = turns
            yield next(waiting) if self.ranks.rank in self._turns else None

    def of_round(self, item: T | None, compute: Callable[[T], R]) -> list[R]:
        """Returns what `compute` makes of each item of this round, in order, on all ranks."""
        mine = [] if item is None else [(self._turns.index(self.ranks.rank), item)]
        return self.ranks.of_each(mine, compute)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Adds a part of this round's terms, in order, to `total`, of which each rank keeps only some rows up to date.

        Args:
            total: `[N, ...]`, or `[]`, which every rank keeps up to date.
            part: of this rank's term, like `total`; what a rank gives that has none in this round is not read.
        """
        if self.ranks.size == 1:
            total += part
            return
        if total.ndim == 0:
            numbers = self.ranks.gather(part.cpu())
            for rank in self._turns:
                total += numbers[rank].to(total.device)
            return
        rows, parts = self.ranks.rows(len(total)), self.ranks.exchange_rows(part)
        for rank in self._turns if parts else ():
            total[rows] += parts[rank]

    def complete(self, total: Tensor) -> None:
        """Gets the rows of `total` from the ranks that added them up."""
        if self.ranks.size > 1:
            for rank, rows in enumerate(self.ranks.gather(total[self.ranks.rows(len(total))].cpu())):
                total[self.ranks.rows(len(total), rank)] = rows.to(total.device)


def _rounds(owners: Sequence[int]) -> Iterator[list[int]]:
    """Yields the owners of the items of each round: as many items, in order, as are of different ranks."""
    turns: list[int] = []
    for owner in owners:
        if owner in turns:
            yield turns
            turns = []
        turns.append(owner)
    if turns:
        yield turns
