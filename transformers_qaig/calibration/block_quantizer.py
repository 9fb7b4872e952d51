"""One block's treatment: its groups of linears go through the recipe's stages, and what does harm is undone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..equalization.finder import GroupFinder
from ..equalization.fold import Group
from ..execution.block_outputs import OutputError, first_tensor, forward
from ..execution.interceptor import TargetInputs
from ..nn.hadamard import Rotation
from ..nn.linear import get_linear
from ..recipes import Recipe
from ..report.summary import BlockSummary
from ..token_weights.weigher import TokenWeigher
from ..utils.finite import is_finite
from ..utils.logging import get_logger
from .decisions import BlockDecisions, Schemes, cast_like, folded_view, packed, rounded
from .exclusions import NotFinite
from .group_inputs import gather_group_inputs, is_finite_where, mask_for
from .reconstruction import BlockReconstruction
from .steps import GroupContext, Step, clip, compensate, equalize, rotate

logger = get_logger(__name__)

VALIDATION_EVERY = 4
"""Every fourth sample takes no part in the searches and judges them."""
SHOWN = 8
"""Samples whose λ is kept in the report."""


@dataclass(frozen=True)
class QuantizerSettings:
    """
    What stays the same from block to block.

    Attributes:
        recipe: the stages.
        finder: finds a block's groups.
        weigher: of tokens.
        seed: of what is random.
        activation_bits: 8 if the packed linears will round their inputs.
    """

    recipe: Recipe
    finder: GroupFinder
    weigher: TokenWeigher
    seed: int = 0
    activation_bits: int = 16


def quantize_block(
    block: nn.Module, path: str, entries: Schemes, streams: TargetInputs, tools: QuantizerSettings
) -> tuple[nn.Module, BlockSummary]:
    """The packed block, and what was chosen for it. Arguments as in [`choose`]."""
    if not entries:
        return copy.deepcopy(block), BlockSummary(path)
    choices, summary = choose(block, path, entries, streams, tools)
    return cast_like(packed(in_float32(block), choices, dtype_of(block, entries), path), block), summary


def choose(
    block: nn.Module, path: str, entries: Schemes, streams: TargetInputs, tools: QuantizerSettings
) -> tuple[BlockDecisions, BlockSummary]:
    """
    What follows for the block's weights, and a summary. Arguments as in [`BlockQuantizer`], but there may be no calls.

    A sample in which something is not finite on the way is left out, and the block begun anew without it.
    """
    recipe = tools.recipe
    searches, left_out = tools.weigher.calls, []
    while recipe.calibrates and streams.calls:
        tools.weigher.calls = searches
        treatment = BlockQuantizer(block, path, entries, streams, tools)
        try:
            choices = treatment.choose()
        except NotFinite as found:
            left_out.append((found.sample, f"{found.where} in {path}"))
            streams.leave_out(dict(left_out[-1:]))
        else:
            treatment.summary.left_out = left_out
            return choices, treatment.summary
    rotations = {name: rotation for name, entry in entries.items() if (rotation := Rotation.of(entry))}
    nothing = BlockDecisions(entries, recipe.include_zero, tools.activation_bits)
    return nothing.with_rotations(rotations), BlockSummary(path, left_out=left_out)


class BlockQuantizer:
    """
    Makes the choices for one block.

    Args:
        block: in full precision; not changed.
        path: where it is in the model.
        entries: linears to pack, at least one.
        streams: at least one sample at the block's door.
        tools: recipe, and what its stages need.
    """

    def __init__(self, block: nn.Module, path: str, entries: Schemes, streams: TargetInputs, tools: QuantizerSettings):
        self.block, self.entries, self.streams, self.tools = block, entries, streams, tools
        self.recipe, calls = tools.recipe, streams.calls
        self.nothing = BlockDecisions(entries, self.recipe.include_zero, tools.activation_bits)
        self.summary = BlockSummary(path)
        self.dtype, self.in_float32 = dtype_of(block, entries), in_float32(block)
        self.judges = list(calls)[::VALIDATION_EVERY] if self.recipe.validate else []
        self.learners = [sample for sample in calls if sample not in self.judges] or self.judges
        self.wanted: dict[int, Tensor] = {}

    def choose(self) -> BlockDecisions:
        """
        What follows for the block's weights; `summary` tells about it.

        Raises:
            NotFinite: something of a sample is not finite on the way.
        """
        before = self.tools.weigher.calls
        self.wanted = self._targets(self.judges)
        choices = self.nothing
        example = self.streams.calls[self.learners[0]].to(next(self.block.parameters()).device)
        groups = self.tools.finder.groups(self.block, example.args, example.kwargs)
        for stages in passes(self.recipe):
            choices = self._pass(groups, stages, choices)
        self.summary.searches = self.tools.weigher.calls - before
        if self.recipe.rounding == "learned":
            choices = self._learn(choices)
        return choices

    def _pass(self, groups: Sequence[Group], stages: Sequence[Step], earlier: BlockDecisions) -> BlockDecisions:
        """Every group through the stages, in the block that has the earlier choices' scales folded."""
        original = folded_view(self.in_float32, earlier)
        full = cast_like(copy.deepcopy(original), self.block) if earlier.scales else self.block
        choices = self.nothing
        done: list[str] = []
        for group in groups:
            members = [name for name in group.linears if name in self.entries]
            if not members:
                continue
            # The paper's code searches all scales of a block before it changes anything in it.
            so_far = full if self.recipe.token_weights == "authors" else self._rounded(original, choices, done)
            blocks = (full, so_far)
            done += members
            foldable = self.tools.finder.foldable(self.block, group)
            bits = max(self.entries[name]["bits"] for name in members)
            site = GroupContext(
                original, group, members, [], self.recipe, self.dtype, foldable, bits, self.summary.path
            )
            site = self._arrive(site, choices, blocks, self.learners)
            if not site.pieces:
                logger.warning("%s.%s: not every sample gets there; rounded to nearest.", self.summary.path, members[0])
                continue
            level = self._harm(original, choices, done)
            for stage in stages:
                candidate = stage(site, choices)
                if candidate is choices:
                    continue
                what = f"{stage.__name__} {', '.join(members)}"
                try:
                    new_level = self._harm(original, candidate, done)
                except NotFinite:
                    self._note(False, f"{what} (its output is not finite)")
                    continue
                better = new_level < level or not self.judges
                self._note(better, what)
                if not better:
                    continue
                if stage in (compensate, rotate) and self.judges and self.recipe.rounding != "nearest":
                    # They have judged: now their tokens count too.
                    candidate = stage(self._arrive(site, choices, blocks, self.judges), choices)
                choices, level = candidate, new_level
        return choices.after(earlier)

    def _arrive(
        self, site: GroupContext, choices: BlockDecisions, blocks: tuple[nn.Module, nn.Module], samples: Sequence[int]
    ) -> GroupContext:
        """The site with some samples standing there, weighed."""
        site = replace(site, pieces=gather_group_inputs(site.block, site.group, blocks, self.streams, samples))
        if site.pieces:
            self.tools.weigher.weigh(site, choices)
            for piece in site.pieces:
                if not is_finite(piece.weights):
                    each = piece.weights_of_each().items()
                    sample = next(sample for sample, rows in each if not all(map(is_finite, rows)))
                    raise NotFinite(sample, f"the token weights at {site.members[0]}")
            if self.recipe.token_weights != "uniform":
                shown = {s: w for piece in site.pieces for s, w in piece.importance().items() if s < SHOWN}
                self.summary.importance.setdefault(site.group.module, {}).update(shown)
        return site

    def _harm(self, original: nn.Module, candidate: BlockDecisions, done: list[str]) -> float:
        """
        Output error on the samples held back, with everything done so far rounded as `candidate` says; finite.

        Raises:
            NotFinite: the output for one of them is not.
        """
        if not self.judges:
            return float("inf")
        trial, error = self._rounded(original, candidate, done), OutputError()
        for sample in self.judges:
            output = first_tensor(forward(trial, self.streams.calls_q[sample]))
            if not error.add(output, self.wanted[sample].to(output.device), self.streams.masks[sample]):
                raise NotFinite(sample, f"the output with {', '.join(done)} rounded")
        return 0.0 if math.isnan(error.value) else error.value  # no token to judge by

    def _rounded(self, original: nn.Module, choices: BlockDecisions, names: list[str]) -> nn.Module:
        return cast_like(rounded(original, choices, names, self.dtype), self.block)

    def _learn(self, choices: BlockDecisions) -> BlockDecisions:
        """The block as a whole: rounding, then scales and what stands around the linears."""
        streams = self.streams
        targets = self._targets(streams.calls)
        learner = BlockReconstruction(
            self.in_float32,
            streams.calls_q,
            targets,
            {sample: mask_for(streams.masks[sample], target).float() for sample, target in targets.items()},
            self.judges or self.learners,
            self.recipe.steps,
            self.tools.seed,
            self.dtype,
        )
        around = {
            name: parameter.dtype
            for name, parameter in self.block.named_parameters()
            if parameter.ndim == 1 and parameter.is_floating_point() and not self.tools.finder.is_shared(parameter)
        }
        choices, found = learner.rounding(choices)
        self._note(found.is_better, f"learned rounding {found.start:.2e} → {found.best:.2e}")
        choices, found = learner.scales(choices, around)
        self._note(found.is_better, f"learned scales {found.start:.2e} → {found.best:.2e}")
        return choices

    def _targets(self, samples: Iterable[int]) -> dict[int, Tensor]:
        """What the block gives for some samples in full precision, finite at real tokens; on the CPU."""
        targets = {}
        for sample in samples:
            targets[sample] = first_tensor(forward(self.block, self.streams.calls[sample])).cpu()
            if not is_finite_where(self.streams.masks[sample], targets[sample]):
                raise NotFinite(sample, "the full-precision output")
        return targets

    def _note(self, good: bool, what: str) -> None:
        (self.summary.kept if good else self.summary.undone).append(what)


def passes(recipe: Recipe) -> list[tuple[Step, ...]]:
    """
    The stages of each pass over the block's groups. Rounding that is not to nearest comes in a pass of its own: its
    codes are for weights that no later fold may change.
    """
    if recipe.rounding == "nearest":
        return [(equalize, clip, rotate)]
    rounding = (compensate, rotate)
    return [(equalize,), rounding] if recipe.equalization != "none" else [rounding]


def in_float32(block: nn.Module) -> nn.Module:
    """A frozen fp32 copy of the block."""
    return copy.deepcopy(block).float().requires_grad_(False)


def dtype_of(block: nn.Module, entries: Schemes) -> torch.dtype:
    """What the linears to pack are stored in, and so the dtype of their scales; the narrowest if they differ."""
    return min((get_linear(block, name).weight.dtype for name in entries), key=lambda dtype: dtype.itemsize)
