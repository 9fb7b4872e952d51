"""Draws tokens from a model's distributions: the same for a sample, whichever samples are drawn for before it here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DRAWS = 4
"""Draws for every token of a sample."""
Draw = Callable[[Tensor], Tensor]
"""Probabilities fp32 `[A, V]` → token of each, int64 `[A, 1]`."""


def one_of_each(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws a token from each distribution."""
    return torch.multinomial(probabilities, 1, generator=generator)


class Draws:
    """Draws for the samples of a set, in order, from one stream of random numbers.

    Args:
        seed: of the stream.
        lengths: tokens to draw, of each sample.
        times: draws for every token of a sample.
    """

    def __init__(self, seed: int, lengths: Sequence[int], times: int = DRAWS):
        self._generator, self._lengths, self._times = torch.Generator().manual_seed(seed), lengths, times
        self._done = 0

    def of(self, sample: int) -> Draw:
        """Returns what draws for a sample; those before it that were not drawn for are skipped."""

        def draw(probabilities: Tensor) -> Tensor:
            for length in self._lengths[self._done : sample]:
                for _ in range(
                    self._times if length else 0
                ):  # what a draw takes of the stream depends on its shape alone
                    one_of_each(probabilities.new_ones(length, probabilities.shape[1]), self._generator)
            self._done = sample + 1
            return one_of_each(probabilities, self._generator)

        return draw
