"""`GroupContext`: what the steps on one group of linears work on, and the moments of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise, starmap
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config.recipes import Recipe
from ..distributed import Terms
from ..equalization.fold import Group
from ..execution.group_inputs import GroupInputs, NotReached
from ..execution.spread import no_tokens
from ..execution.streamed_inputs import StreamedInputs
from ..formats.scheme import Plan, Rotation
from ..nn.linear import get_linear
from ..rounding.bfloat16_products import halves, multiplies_exactly
from ..rounding.damping import Damping, Hessians, choose_damping
from ..rounding.hessian import MIN_TOKENS, HessianAccumulator, finite_tokens
from ..rounding.moments import InputMoments, shifts_outputs
from ..token_weights.precomputed import weights_at_rows
from ..utils.memory import free_memory
from .decisions import BlockDecisions, folded_view

T = TypeVar("T")
SHARE_OF_FREE_MEMORY = 0.125
"""Moments that take more of what is free on the device wait on the CPU."""


@dataclass(frozen=True)
class Measured:
    """What the inputs of a group say about its Hessian.

    Attributes:
        moments: of the samples that are searched with. Large ones wait on the CPU while the block is validated.
        damping: that did best on the samples that are held back.
        held_back: the moments of those, with the token weights of the search; None if they must be measured.
        hessian_of: makes Hessians of the moments.
        is_all: whether no other samples can join, as none that is held back gets there.
    """

    moments: InputMoments
    damping: Damping
    held_back: InputMoments | None
    hessian_of: Hessians
    is_all: bool = False

    @property
    def nbytes(self) -> int:
        """The bytes of all moments."""
        return self.moments.nbytes + (0 if self.held_back is None else self.held_back.nbytes)

    def to(self, device: torch.device) -> Measured:
        """Returns it on a device, without the Hessians made so far."""
        moments = self.moments.to(device)
        held_back = None if self.held_back is None else self.held_back.to(device)
        return replace(self, moments=moments, held_back=held_back, hessian_of=Hessians(moments.second))


@dataclass(frozen=True)
class GroupContext:
    """The inputs of a step.

    Attributes:
        block: in fp32, before any decision of this pass; not changed.
        group: the linears that read one tensor.
        schemes: path of each of them that is in the plan → how the plan stores it, with the rotation that it offers.
        inputs: the samples at their entrance, with token weights; they may be run again each time.
        recipe: the settings of the steps.
        dtype: what the scales are stored in.
        foldable: whether a scale on the tensor can be folded away.
        path: of the block, for warnings.
        counts_padding: whether padding counts when a scale is searched.
        held_back: samples that are not searched with, at the same place; None if there are none.
        damping_weights: held-back sample → λ with which it chooses a damping, where it is not 1; None to choose none.
        joins: whether a step works on these samples, too: they have served to validate it.
        measured: rotation → what was measured, until held-back samples join.
    """

    block: nn.Module
    group: Group
    schemes: Plan
    inputs: Terms[GroupInputs]
    recipe: Recipe
    dtype: torch.dtype
    foldable: bool
    path: str = ""
    counts_padding: bool = False
    held_back: Terms[GroupInputs] | None = None
    damping_weights: Mapping[int, Tensor] | None = None
    joins: bool = False
    measured: dict[Rotation | None, Measured] = field(default_factory=dict)

    @property
    def members(self) -> list[str]:
        """The group's linears that are in the plan."""
        return list(self.schemes)

    @property
    def device(self) -> torch.device:
        """The device of the block."""
        return next(self.block.parameters()).device

    @property
    def is_equalized(self) -> bool:
        """Whether the recipe searches a scale for this group."""
        shared = len(set(self.group.channels)) < len(self.group.channels)
        recipe, bits = self.recipe, max(scheme.bits for scheme in self.schemes.values())
        wanted = recipe.equalization != "none" and bits <= recipe.equalization_bits
        return wanted and self.foldable and (recipe.equalize_gqa or not shared)

    @property
    def only_sums(self) -> bool:
        """Whether the steps read nothing but sums over tokens, once for each set of samples."""
        is_plain = self.recipe.rounding != "nearest" and self.recipe.token_weights == "uniform"
        rotates = any(scheme.rotation is not None for scheme in self.schemes.values())
        return is_plain and not self.is_equalized and not rotates and self.group.runs == 1

    @property
    def is_trial(self) -> bool:
        """Whether a step's result is validated and then made again with more samples, so that it need not be the best.

        Validation compares such results with each other, or with rounding to nearest.
        """
        return self.held_back is not None and not self.joins

    @property
    def num_tokens(self) -> int:
        """The number of real tokens in the inputs; of those that run again each time, in their last run."""
        if isinstance(self.inputs.mine, StreamedInputs):
            return self.inputs.mine.num_tokens
        return sum(self.inputs.of_each(lambda inputs: int(inputs.mask.sum())))

    def name_of(self, member: str) -> str:
        """Returns a member's path in the model."""
        return f"{self.path}.{member}"

    def loaded(
        self, inputs: Terms[GroupInputs] | None = None, dtype: torch.dtype | None = torch.float32
    ) -> Iterator[GroupInputs]:
        """Yields this rank's inputs one after the other, on the block's device; none where only others have some."""
        columns = get_linear(self.block, self.members[0]).weight.shape[1]
        rounds = (self.inputs if inputs is None else inputs).in_rounds()
        return ((one or no_tokens(columns)).loaded(self.device, dtype) for one in rounds)

    def of_each(self, compute: Callable[[GroupInputs], T]) -> list[T]:
        """Returns what `compute` makes of each of the inputs on the block's device, in order, on all ranks."""
        return self.inputs.of_each(lambda inputs: compute(inputs.loaded(self.device)))

    def scale(self, decisions: BlockDecisions) -> Tensor:
        """Returns E that `decisions` folds into the group; 1 if none."""
        return next((e for g, e in decisions.scales if g is self.group), torch.ones(())).to(self.device)

    def quantized_inputs(self, decisions: BlockDecisions) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields what the linears multiply in the quantized model once `decisions` is folded, and the token weights."""
        scale, name = self.scale(decisions), self.members[0]
        return ((decisions.inputs(one.hidden_q / scale, name), one.token_weights) for one in self.loaded())

    def measure(self, decisions: BlockDecisions) -> Measured:
        """Measures the inputs, and chooses a damping on the samples that are held back. Keeps both until these join."""
        rotation = decisions.schemes[self.members[0]].rotation
        if rotation in self.measured:
            return self.measured[rotation].to(self.device)
        moments = self._moments_of(self.inputs, decisions)
        found = self._with_damping(moments, decisions)
        if self.held_back is not None:
            is_large = found.nbytes > SHARE_OF_FREE_MEMORY * free_memory(self.device)
            waiting = found.to(torch.device("cpu")) if is_large else found
            self.measured[rotation] = replace(waiting, hessian_of=Hessians(waiting.moments.second))
        return replace(found, held_back=None)  # which is as large as the moments

    def join(self, decisions: BlockDecisions) -> Measured:
        """Adds the samples that are held back to what was measured, for good."""
        found = self.measure(decisions)
        self.measured.pop(decisions.schemes[self.members[0]].rotation, None)
        if self.held_back is not None:
            with suppress(NotReached):
                found.moments.join(found.held_back or self._moments_of(self.held_back, decisions))
        return replace(found, held_back=None)  # which is as large as the moments

    def _with_damping(self, moments: InputMoments, decisions: BlockDecisions) -> Measured:
        """Chooses a damping for the moments."""
        hessian_of, known = Hessians(moments.second), self.damping_weights
        plain = Measured(moments, Damping(), None, hessian_of)
        if self.held_back is None or known is None:
            return plain
        are_alike = not known and self.recipe.token_weights == "uniform"
        weigh = None if are_alike else partial(weights_at_rows, by_sample=known)
        try:
            held_back = self._moments_of(self.held_back, decisions, weigh)
        except NotReached:
            return replace(plain, is_all=True)
        if float(held_back.mass) < MIN_TOKENS:
            return plain
        grids = {name: decisions.grid_arguments(name, self.dtype) for name in self.members}
        damping = choose_damping(self._weights(decisions), grids, moments, held_back, self.recipe, hessian_of)
        return Measured(moments, damping, held_back if are_alike else None, hessian_of)

    def _weights(self, decisions: BlockDecisions) -> dict[str, Tensor]:
        block = folded_view(self.block, decisions)
        return {name: decisions.weight(block, name) for name in self.members}

    def _moments_of(
        self,
        samples: Terms[GroupInputs],
        decisions: BlockDecisions,
        weigh: Callable[[GroupInputs], Tensor] | None = None,
    ) -> InputMoments:
        second, shift = HessianAccumulator(terms=samples), HessianAccumulator(terms=samples)
        stacked, rows = self._weights_that_shift_outputs(decisions)
        as_read = self._linears_multiply_what_they_read(decisions)
        exact = as_read and multiplies_exactly(self.device)
        for inputs in self.loaded(samples, None if exact else torch.float32):
            x, x_q, weights = inputs.hidden, inputs.hidden_q, inputs.token_weights
            if weigh is not None:
                x, x_q, weights = _that_count(x, x_q, weigh(inputs))
            del inputs  # 8192 tokens of 19,000 channels are 0.6 GB
            if not as_read:
                x, x_q = self._multiplied(x, x_q, decisions)
                x_q, x, weights = finite_tokens(x_q, x, weights)
            in_bfloat16 = exact and x.dtype == x_q.dtype == torch.bfloat16
            x, x_q = (x, x_q) if in_bfloat16 else (x.float(), x_q.float())
            second.add(x_q, x_q, weights)
            if self.recipe.asymmetric:
                change = x.float().sub_(x_q) if in_bfloat16 else x - x_q
                change = change if stacked is None else change @ stacked.T
                high, rest = halves(change) if in_bfloat16 else (change, None)
                shift.add(x_q, high, weights, rest)
        second.complete()
        shift.complete()
        return InputMoments.of_sums(second.moment, shift.moment if self.recipe.asymmetric else None, second.mass, rows)

    def _weights_that_shift_outputs(self, decisions: BlockDecisions) -> tuple[Tensor | None, dict[str, slice] | None]:
        """Returns all weights `[N, K]` and the rows of each, if [`shifts_outputs`] says so; else None."""
        shapes = [get_linear(self.block, name).weight.shape for name in self.members]
        if not self.recipe.asymmetric or not shifts_outputs(sum(shape[0] for shape in shapes), shapes[0][1]):
            return None, None
        ends = list(accumulate((shape[0] for shape in shapes), initial=0))
        return torch.cat(list(self._weights(decisions).values())), dict(
            zip(self.members, starmap(slice, pairwise(ends)))
        )

    def _linears_multiply_what_they_read(self, decisions: BlockDecisions) -> bool:
        """Whether nothing happens to the inputs, which are finite, and their weights are 0 and 1."""
        is_rounded = decisions.schemes[self.members[0]].activation_bits == 8
        return self.only_sums and not is_rounded and self.scale(decisions).ndim == 0

    def _multiplied(self, x: Tensor, x_q: Tensor, decisions: BlockDecisions) -> tuple[Tensor, Tensor]:
        """Returns the inputs as linears multiply them in the full-precision model, and in the quantized one."""
        scale, name = self.scale(decisions), self.members[0]
        return decisions.rotated(x / scale, name), decisions.inputs(x_q / scale, name)


def _that_count(x: Tensor, x_q: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the tokens whose weight is not zero: of a sample with pictures they are few."""
    counts = weights.reshape(-1) != 0
    x, x_q = (each.reshape(-1, each.shape[-1])[counts] for each in (x, x_q))
    return x, x_q, weights.reshape(-1)[counts]
