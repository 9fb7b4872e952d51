"""`GroupContext`: what the steps on one group of linears work on, and the moments of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
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
from ..rounding.damping import Damping, choose_damping
from ..rounding.hessian import MIN_TOKENS, HessianAccumulator, finite_tokens
from ..rounding.moments import InputMoments
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
    """

    moments: InputMoments
    damping: Damping


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
        damping_weights: gives λ fp32 `[B, T]` of held-back inputs, which choose a damping; None to choose none.
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
    damping_weights: Callable[[GroupInputs], Tensor] | None = None
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
            kept = self.measured[rotation]
            return Measured(kept.moments.to(self.device), kept.damping)
        moments = self._moments_of(self.inputs, decisions)
        found = Measured(moments, self._choose_damping(moments, decisions))
        if self.held_back is not None:
            is_large = moments.nbytes > SHARE_OF_FREE_MEMORY * free_memory(self.device)
            self.measured[rotation] = Measured(moments.to(torch.device("cpu")), found.damping) if is_large else found
        return found

    def join(self, decisions: BlockDecisions) -> Measured:
        """Adds the samples that are held back to what was measured, for good."""
        found = self.measure(decisions)
        self.measured.pop(decisions.schemes[self.members[0]].rotation, None)
        if self.held_back is not None:
            with suppress(NotReached):
                found.moments.join(self._moments_of(self.held_back, decisions))
        return found

    def _choose_damping(self, moments: InputMoments, decisions: BlockDecisions) -> Damping:
        if self.held_back is None or self.damping_weights is None:
            return Damping()
        try:
            held_back = self._moments_of(self.held_back, decisions, self.damping_weights)
        except NotReached:
            return Damping()
        if float(held_back.mass) < MIN_TOKENS:
            return Damping()
        block = folded_view(self.block, decisions)
        weights = {name: decisions.weight(block, name) for name in self.members}
        grids = {name: decisions.grid_arguments(name, self.dtype) for name in self.members}
        return choose_damping(weights, grids, moments, held_back, self.recipe)

    def _moments_of(
        self,
        samples: Terms[GroupInputs],
        decisions: BlockDecisions,
        weigh: Callable[[GroupInputs], Tensor] | None = None,
    ) -> InputMoments:
        second, shift = HessianAccumulator(terms=samples), HessianAccumulator(terms=samples)
        as_read = self._linears_multiply_what_they_read(decisions)
        exact = as_read and multiplies_exactly(self.device)
        for inputs in self.loaded(samples, None if exact else torch.float32):
            x, x_q, weights = inputs.hidden, inputs.hidden_q, inputs.token_weights if weigh is None else weigh(inputs)
            del inputs  # 8192 tokens of 19,000 channels are 0.6 GB
            if not as_read:
                x, x_q = self._multiplied(x, x_q, decisions)
                x_q, x, weights = finite_tokens(x_q, x, weights)
            in_bfloat16 = exact and x.dtype == x_q.dtype == torch.bfloat16
            x, x_q = (x, x_q) if in_bfloat16 else (x.float(), x_q.float())
            second.add(x_q, x_q, weights)
            if self.recipe.asymmetric:
                change, rest = halves(x.float().sub_(x_q)) if in_bfloat16 else (x - x_q, None)
                shift.add(x_q, change, weights, rest)
        second.complete()
        shift.complete()
        return InputMoments.of_sums(second.moment, shift.moment if self.recipe.asymmetric else None, second.mass)

    def _linears_multiply_what_they_read(self, decisions: BlockDecisions) -> bool:
        """Whether nothing happens to the inputs, which are finite, and their weights are 0 and 1."""
        is_rounded = decisions.schemes[self.members[0]].activation_bits == 8
        return self.only_sums and not is_rounded and self.scale(decisions).ndim == 0

    def _multiplied(self, x: Tensor, x_q: Tensor, decisions: BlockDecisions) -> tuple[Tensor, Tensor]:
        """Returns the inputs as linears multiply them in the full-precision model, and in the quantized one."""
        scale, name = self.scale(decisions), self.members[0]
        return decisions.rotated(x / scale, name), decisions.inputs(x_q / scale, name)
