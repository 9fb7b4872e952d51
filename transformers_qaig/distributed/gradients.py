"""Gradients of a batch whose samples are spread over ranks, added in the order of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .terms import Terms

T = TypeVar("T")


def gradients_in_order(loss: Callable[[T], Tensor], leaves: Sequence[Tensor], batch: Terms[T]) -> float:
    """Adds the gradient of each sample's loss to the leaves' `.grad`, on all ranks alike.

    Args:
        loss: of one sample; a scalar.
        leaves: without a gradient so far, alike on all ranks.
        batch: the samples.

    Returns:
        the sum of the losses.
    """
    if batch.ranks.size == 1:
        total = 0.0
        for sample in batch:
            value = loss(sample)
            value.backward()
            total += float(value.detach())
        return total
    sums = [torch.full_like(leaf, -0.0) for leaf in leaves]  # x + -0 is x, also where x is -0
    used = [False] * len(leaves)
    losses: list[float] = []

    def own(sample: T) -> float:
        value = loss(sample)
        value.backward()
        return float(value.detach())

    for turn in batch.in_rounds():
        losses += batch.of_round(turn, own)
        for index, (leaf, total_of_leaf) in enumerate(zip(leaves, sums)):
            part, leaf.grad = leaf.grad, None
            used[index] |= part is not None
            batch.add(total_of_leaf, torch.full_like(leaf, -0.0) if part is None else part)
    for index, flags in enumerate(zip(*batch.ranks.gather(used))):
        batch.complete(sums[index])
        leaves[index].grad = sums[index] if any(flags) else None
    return sum(losses)
