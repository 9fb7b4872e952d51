"""`StreamedInputs`: what a group of linears reads, made anew for each use, so that no sample's inputs are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from torch import Tensor, nn

from ..equalization.fold import Group
from ..utils.finite import are_finite
from .gathering import entering, finite_inputs
from .group_inputs import GroupInputs, is_tokenwise, join, rows_of, tokens_of
from .layer_inputs import TargetInputs
from .token_rows import RowFinder


@dataclass(frozen=True)
class StreamedInputs:
    """Some samples at a group's entrance, as [`gather_group_inputs`] returns them, for sums over tokens.

    Every iteration runs the samples again. What it yields is on the device and has no arguments of the sub-block. At 7B
    the inputs of 128 samples are 10 GB for the widest group; here a row of them is held at a time.

    Attributes:
        original: the block in fp32.
        group: which sub-block; its linears run once in a call.
        blocks: the block in full precision, and quantized so far.
        inputs: what they are called with.
        samples: which ones.
        weigh: computes λ of each of some inputs.
    """

    original: nn.Module
    group: Group
    blocks: tuple[nn.Module, nn.Module]
    inputs: TargetInputs
    samples: Sequence[int]
    weigh: Callable[[Sequence[GroupInputs]], list[Tensor]]
    _tokens: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """The number of real tokens that the last iteration yielded."""
        return sum(self._tokens)

    def __iter__(self) -> Iterator[GroupInputs]:
        """Yields the inputs, joined where the sub-block treats each token by itself.

        Raises:
            NotReached: no sample can be used.
            NotFinite: a real token of a sample is not finite there.
        """
        self._tokens.clear()
        finder = RowFinder(self.blocks[0], self.group, self.inputs, self.samples)
        entered = entering(self.group, self.blocks, self.inputs, finder)
        first = next(entered)
        device = next(self.original.parameters()).device
        joins = is_tokenwise(self.original, self.group, finite_inputs(first, self.group).loaded(device))
        for row in rows_of(map(_without_arguments, chain([first], entered)), tokens_of):
            finite = self._finite(row)
            row.clear()
            for one in [join(finite)] if joins else finite:
                self._tokens.append(int(one.mask.sum()))
                (one.token_weights,) = self.weigh([one])
                yield one

    def _finite(self, row: list[GroupInputs]) -> list[GroupInputs]:
        """Makes what is not finite at padding zero; the host waits once for a row in which there is nothing to do."""
        if all(are_finite([x for one in row for x in (one.hidden, one.hidden_q)])):
            return list(row)
        return list(map(partial(finite_inputs, group=self.group), row))


def _without_arguments(one: GroupInputs) -> GroupInputs:
    return replace(one, args=(), kwargs={})
