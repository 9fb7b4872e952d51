"""`GroupContext`: what the steps on one group of linears work on, and the moments of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config.recipes import Recipe
from ..distributed import Terms
from ..equalization.fold import Group
from ..execution.group_inputs import GroupInputs
from ..execution.spread import no_tokens
from ..execution.streamed_inputs import StreamedInputs
from ..formats.scheme import Plan, Rotation
from ..nn.linear import get_linear
from ..rounding.hessian import HessianAccumulator
from .decisions import BlockDecisions

T = TypeVar("T")
IDLE_BYTES = 2**27
"""A second moment that is larger waits on the CPU."""


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
        measured: rotation → moments of earlier samples, which are added to those of `inputs`: of hidden_q, of hidden_q
            with hidden - hidden_q, and Σ λ. Large ones are on the CPU: at 19,000 channels each is 1.4 GB, and they are
            idle while the block is validated.
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
    measured: dict[Rotation | None, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

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

    def loaded(self) -> Iterator[GroupInputs]:
        """Yields this rank's inputs one after the other, on the block's device; none where only others have some."""
        columns = get_linear(self.block, self.members[0]).weight.shape[1]
        return ((inputs or no_tokens(columns)).loaded(self.device) for inputs in self.inputs.in_rounds())

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

    def measure(self, decisions: BlockDecisions) -> tuple[Tensor, Tensor]:
        """Computes second moments of all inputs so far.

        Returns:
            Σ λ x_q x_qᵀ / Σ λ and, where the recipe asks for it, Σ λ x_q (x - x_q)ᵀ / Σ λ, both fp32 `[K, K]`. x_q is
            what the linears multiply in the quantized model, x what they would in the full-precision one.
        """
        scale, name = self.scale(decisions), self.members[0]
        rotation = decisions.schemes[name].rotation
        second, shift = HessianAccumulator(terms=self.inputs), HessianAccumulator(terms=self.inputs)
        for inputs in self.loaded():
            x, x_q = inputs.hidden / scale, decisions.inputs(inputs.hidden_q / scale, name)
            weights = inputs.token_weights
            del inputs  # 8192 tokens of 19,000 channels are 0.6 GB
            second.add(x_q, x_q, weights)
            if self.recipe.asymmetric:
                shift.add(x_q, decisions.rotated(x, name).sub_(x_q), weights)
        second.complete()
        shift.complete()
        sums, before = (second.moment, shift.moment, second.mass), self.measured.get(rotation)
        if before is not None:
            for total, earlier in zip(sums, before):
                total += earlier.to(total.device)
        elif self.recipe.validate:  # the validation samples join later
            home = self.device if second.moment.nbytes <= IDLE_BYTES else "cpu"
            moment, shifts, mass = (total.to(home, copy=True) for total in sums)
            self.measured[rotation] = moment, shifts, mass
        divisor = second.mass.clamp(min=1e-12)
        return second.moment.div_(divisor), shift.moment.div_(divisor) if self.recipe.asymmetric else shift.moment
