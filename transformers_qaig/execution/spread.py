"""Spreads what a group of linears reads over ranks: samples that are joined go to the rank that runs their row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import nn

from ..distributed import Ranks, Terms
from ..equalization.fold import Group
from .exclusions import place_in
from .group_inputs import GroupInputs, NotReached, is_tokenwise, join, rows_of
from .token_rows import RowLayout


@dataclass(frozen=True)
class Entered:
    """The samples of one rank at a sub-block's entrance.

    Attributes:
        inputs: of each sample, in order.
        reason: why there are none.
        layout: of the rows, if this rank had to look for it.
    """

    inputs: Sequence[GroupInputs]
    reason: str = ""
    layout: RowLayout | str | None = "not looked for"


def spread(
    original: nn.Module, group: Group, enter_local: Callable[[], Entered], samples: Sequence[int], ranks: Ranks
) -> Terms[GroupInputs]:
    """Enters a sub-block on every rank, and joins samples into rows as one process would.

    Args:
        original: the block in fp32.
        group: which sub-block.
        enter_local: enters this rank's samples.
        samples: of all ranks, in order.
        ranks: which have them.

    Raises:
        NotReached, NotFinite: as one process would raise it, on all ranks.
        RuntimeError: ranks disagree about which tokens the rows are.
    """
    place = {sample: index for index, sample in enumerate(samples)}
    device, entered = next(original.parameters()).device, Entered(())

    def local_result() -> tuple[list[tuple[int, int]], bool, Entered]:
        nonlocal entered
        entered = enter_local()
        joins = bool(entered.inputs) and is_tokenwise(original, group, entered.inputs[0].loaded(device))
        sizes = [(place[one.samples[0]], one.mask.numel()) for one in entered.inputs]
        return sizes, joins, replace(entered, inputs=())

    of_ranks = ranks.together(local_result, place_in(samples))
    owner = {where: rank for rank, (sizes, _, _) in enumerate(of_ranks) for where, _ in sizes}
    if not owner:
        raise NotReached(max((of_rank.reason for _, _, of_rank in of_ranks), key=len))
    layouts = {of_rank.layout for _, _, of_rank in of_ranks} - {"not looked for"}
    if len(layouts) > 1:
        raise RuntimeError(f"{group.linears[0]}: processes found different tokens in its rows: use one process.")
    size = dict(chain(*(sizes for sizes, _, _ in of_ranks)))
    if not of_ranks[owner[min(owner)]][1]:
        return Terms(entered.inputs, [owner[where] for where in sorted(owner)], ranks)
    rows = list(rows_of(sorted(owner), size.__getitem__))
    owners = [owner[row[0]] if len(row) == 1 else index % ranks.size for index, row in enumerate(rows)]
    return Terms(
        _exchange_rows(rows, owners, {place[one.samples[0]]: one for one in entered.inputs}, ranks), owners, ranks
    )


def _exchange_rows(
    rows: Sequence[Sequence[int]], owners: Sequence[int], local: dict[int, GroupInputs], ranks: Ranks
) -> list[GroupInputs]:
    """Sends each rank the samples of its rows, and returns this rank's rows."""
    outgoing: list[dict[int, GroupInputs]] = [{} for _ in range(ranks.size)]
    for row, owner in zip(rows, owners):
        for where in row:
            if where in local and owner != ranks.rank:
                outgoing[owner][where] = replace(local[where], args=(), kwargs={})
    found = dict(local)
    for arrived in ranks.exchange(outgoing):
        found.update(arrived)
    return [join([found[where] for where in row]) for row, owner in zip(rows, owners) if owner == ranks.rank]


def no_tokens(columns: int) -> GroupInputs:
    """Returns inputs without a token, for a rank that has no term in a round."""
    x, mask = torch.zeros(1, 0, columns), torch.zeros(1, 0, dtype=torch.bool)
    return GroupInputs([], x, x, mask, [], token_weights=torch.zeros(1, 0))
