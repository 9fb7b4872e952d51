"""Quantizes one block with the recipe's steps, and rejects steps that increase the validation error."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial

from torch import Tensor, nn

from ..distributed import Terms
from ..equalization.fold import Group
from ..execution.exclusions import NotFinite, place_in
from ..execution.gathering import gather_group_inputs
from ..execution.group_inputs import GroupInputs, NotReached
from ..execution.held_back import VALIDATION_EVERY, HeldBack, full_outputs
from ..execution.layer_inputs import LayerInputs, TargetInputs
from ..execution.routed_rows import RoutedRows, gather_routed
from ..execution.streamed_inputs import StreamedInputs
from ..execution.token_rows import row_mask
from ..formats.scheme import Plan
from ..nn.experts_module import LinearExperts
from ..report.summary import TargetSummary
from ..rounding.learned import Learned
from ..token_weights.base import SubBlock
from ..utils.finite import is_finite
from .decisions import BlockDecisions, FoldedBlock, dtype_of, in_float32
from .experts import StackStep
from .group_context import GroupContext
from .quantizer_settings import QuantizerSettings
from .reconstruction import BlockReconstruction
from .steps import Pass, passes

SHOWN = 8
"""Samples whose λ is kept in the report."""


class BlockQuantizer:
    """Makes the decisions for one block.

    Args:
        block: in full precision; not changed.
        path: where it is in the model.
        schemes: path of a linear in the block → how the plan stores it; at least one. A rotation is only an offer.
        inputs: at least one sample at the block.
        settings: recipe, and what its steps need.
    """

    def __init__(self, block: nn.Module, path: str, schemes: Plan, inputs: TargetInputs, settings: QuantizerSettings):
        self.block, self.schemes, self.inputs, self.settings = block, schemes, inputs, settings
        self.recipe = settings.recipe
        unrotated = {name: replace(scheme, rotation=None) for name, scheme in schemes.items()}
        self.nothing = BlockDecisions(unrotated, self.recipe.include_zero)
        self.summary = TargetSummary(path)
        self.dtype, self.in_float32 = dtype_of(block, schemes), in_float32(block)
        samples = inputs.samples()
        self.validation = samples[::VALIDATION_EVERY] if self.recipe.validate else []
        self.calibration = [sample for sample in samples if sample not in self.validation] or self.validation
        experts = (name for name, module in block.named_modules() if isinstance(module, LinearExperts))
        self.stacks = {stack: [name for name in schemes if name.startswith(f"{stack}.")] for stack in experts}
        learned = self.stacks.values() if self.recipe.rounding == "learned" else ()
        self.keepers = settings.keepers(block, [name for names in learned for name in names])

    @cached_property
    def held_back(self) -> HeldBack:
        """The samples that validate, with their outputs in full precision."""
        return HeldBack(self.block, self.inputs, self.validation)

    def decide(self) -> BlockDecisions:
        """Makes the decisions, and describes them in `summary`.

        Raises:
            NotFinite: a sample is not finite on the way.
        """
        decisions, _ = self.nothing, self.held_back  # what is not finite in full precision is found first
        groups = self.inputs.of_one(self.calibration[0], self._find_groups)
        alone = set(self.schemes).difference(*(group.linears for group in groups), *self.stacks.values())
        self.summary.to_nearest = dict.fromkeys(sorted(alone), "it never runs")
        for steps in passes(self.recipe):
            decisions = self._pass(groups, steps, decisions)
        if self.recipe.rounding == "learned":
            decisions, self.summary.to_nearest = self._learn(decisions), {}
        self.summary.damping = {name: [each.codes, each.target] for name, each in decisions.damping.items()}
        return decisions

    def _find_groups(self, call: LayerInputs) -> list[Group]:
        example = call.to(next(self.block.parameters()).device)
        return self.settings.finder.groups(self.block, example.args, example.kwargs)

    def _pass(self, groups: Sequence[Group], steps: Pass, earlier: BlockDecisions) -> BlockDecisions:
        """Takes every group through the steps, in the block that has the earlier decisions' scales folded."""
        start = FoldedBlock.of(self.block, self.in_float32, earlier, self.dtype)
        decisions = self.nothing
        done: list[str] = []
        for group in groups:
            schemes = {name: self.schemes[name] for name in group.linears if name in self.schemes}
            if not schemes:
                continue
            sees_rounding = self.settings.token_weights.sees_earlier_rounding
            blocks = start.full, start.rounded(decisions, done) if sees_rounding and done else start.full
            done += schemes
            context = replace(
                self._context(start, group, schemes),
                foldable=self.settings.finder.foldable(self.block, group),
                counts_padding=self.settings.token_weights.counts_padding,
                damping_weights=self.settings.damping_weights_of(self.block),
            )
            try:
                context = replace(context, inputs=self._gather(context, decisions, blocks, self.calibration))
                if steps.uses_validation_samples and self.validation:
                    with suppress(NotReached):
                        context = replace(context, held_back=self._gather(context, decisions, blocks, self.validation))
                decisions = self._group(context, decisions, steps, start, done)
            except NotReached as found:
                self.summary.to_nearest.update(dict.fromkeys(schemes, str(found)))
        if steps.rounds:
            for stack, names in self.stacks.items():
                if names:
                    decisions = self._stack(stack, names, decisions, steps, start, done)
        return decisions.with_earlier_scales(earlier)

    def _context(self, start: FoldedBlock, group: Group, schemes: Plan) -> GroupContext:
        """Returns what the steps on some linears work on, without inputs."""
        path = self.summary.path
        block = start.in_float32
        return GroupContext(block, group, schemes, Terms([]), self.recipe, self.dtype, foldable=False, path=path)

    def _stack(
        self,
        stack: str,
        names: list[str],
        decisions: BlockDecisions,
        steps: Pass,
        start: FoldedBlock,
        done: list[str],
    ) -> BlockDecisions:
        """Quantizes all experts of a stack as one step, and keeps that if it does not raise the validation error."""
        blocks = start.full, start.rounded(decisions, done)
        done += names
        schemes = {name: self.schemes[name] for name in names}
        context = self._context(start, Group((stack,), stack, None, ()), schemes)
        joins = steps.uses_validation_samples and bool(self.validation)
        step = StackStep(stack, context, self.settings.expert_memory, self.keepers, is_trial=joins)
        if not step.does_more_than_nearest:
            return decisions

        def gather(samples: Sequence[int]) -> RoutedRows:
            weigh = partial(self._weigh, context, decisions)
            return gather_routed(stack, blocks, self.inputs, samples, weigh, self.settings.all_experts)

        try:
            candidate = step(gather(self.calibration), decisions)
        except NotReached as found:
            self.summary.to_nearest.update(dict.fromkeys(names, str(found)))
            return decisions
        if candidate is None:
            return decisions
        error = self._validation_error(start, decisions, done)
        if self._error_if_better(f"experts {stack}", start, candidate, done, error) is None:
            return decisions
        if joins:
            step.is_trial = False
            candidate = step(gather([*self.calibration, *self.validation]), decisions) or decisions
        self.summary.averaged[stack] = len(step.averaged)
        self.summary.to_nearest.update(step.to_nearest)
        return candidate

    def _group(
        self,
        context: GroupContext,
        decisions: BlockDecisions,
        steps: Pass,
        start: FoldedBlock,
        done: list[str],
    ) -> BlockDecisions:
        """Takes one group through the steps, and keeps those that do not raise the validation error."""
        error = self._validation_error(start, decisions, done)
        for step in steps.steps:
            candidate = step(context, decisions)
            if candidate is None:
                continue
            new_error = self._error_if_better(
                f"{step.name} {', '.join(context.members)}", start, candidate, done, error
            )
            if new_error is None:
                continue
            if context.held_back is not None:
                # Validation is over, so these samples now join the calibration data.
                candidate = step(replace(context, joins=True), decisions) or decisions
            decisions, error = candidate, new_error
        return decisions

    def _error_if_better(
        self, what: str, start: FoldedBlock, candidate: BlockDecisions, done: list[str], error: float
    ) -> float | None:
        """Returns the candidate's validation error if it is below `error` or there is none to measure; else None."""
        try:
            new_error = self._validation_error(start, candidate, done)
        except NotFinite:
            self._record(False, f"{what} (its output is not finite)")
            return None
        better = new_error < error or not self.validation
        self._record(better, what)
        return new_error if better else None

    def _gather(
        self,
        context: GroupContext,
        decisions: BlockDecisions,
        blocks: tuple[nn.Module, nn.Module],
        samples: Sequence[int],
    ) -> Terms[GroupInputs]:
        """Returns some samples at the group's entrance, with their token weights.

        Raises:
            NotReached: none of the samples can be used.
        """
        ranks = self.inputs.ranks
        if context.only_sums and ranks.size == 1:
            weigh = partial(self._weigh, context, decisions)
            streamed = StreamedInputs(context.block, context.group, blocks, self.inputs, samples, weigh)
            return Terms(streamed)
        inputs = gather_group_inputs(context.block, context.group, blocks, self.inputs, samples)
        ranks.together(lambda: self._weigh_all(context, decisions, list(inputs)), place_in(samples))
        if self.recipe.token_weights != "uniform":
            shown = {s: w for one in inputs for s, w in one.first_sequence_weights().items() if s < SHOWN}
            for of_rank in ranks.gather(shown):
                self.summary.token_weights.setdefault(context.group.module, {}).update(of_rank)
        return inputs

    def _weigh_all(self, context: GroupContext, decisions: BlockDecisions, inputs: Sequence[GroupInputs]) -> None:
        for one, weights in zip(inputs, self._weigh(context, decisions, inputs)):
            one.token_weights = weights

    def _weigh(self, context: GroupContext, decisions: BlockDecisions, inputs: Sequence[GroupInputs]) -> list[Tensor]:
        """Computes the token weights λ fp32 `[B, T]` of each of a group's inputs.

        Raises:
            NotFinite: those of a sample are not finite.
        """
        block, group, schemes = context.block, context.group, decisions.schemes
        sub_block = SubBlock(
            self.block, block, group, inputs, schemes, decisions.include_zero, self.dtype, context.is_equalized
        )
        found = self.settings.token_weights.weigh(sub_block)
        for one, weights in zip(inputs, found):
            if not is_finite(weights):
                each = replace(one, token_weights=weights).token_weights_by_sample().items()
                sample = next(sample for sample, rows in each if not all(map(is_finite, rows)))
                raise NotFinite(sample, f"the token weights at {context.group.linears[0]}")
        return found

    def _validation_error(self, start: FoldedBlock, candidate: BlockDecisions, done: list[str]) -> float:
        """Computes the output error on the validation samples, with the linears in `done` rounded as `candidate` says.

        Raises:
            NotFinite: the output for one of them is not finite.
        """
        if not self.validation:
            return float("inf")
        trial = start.rounded(candidate, done)
        return self.held_back.error(trial, f"the output with {', '.join(done)} rounded")

    def _learn(self, decisions: BlockDecisions) -> BlockDecisions:
        """Learns the block as a whole: its rounding, then its scales and the other parameters around the linears."""
        inputs = self.inputs
        samples = inputs.samples()
        targets = full_outputs(self.block, inputs, samples)
        reconstruction = BlockReconstruction(
            self.in_float32,
            inputs.quantized,
            targets,
            {sample: row_mask(inputs.masks[sample], target).float() for sample, target in targets.items()},
            self.validation or self.calibration,
            self.recipe.steps,
            self.settings.seed,
            self.dtype,
            samples,
            inputs.ranks,
            self.keepers,
        )
        others = {
            name: parameter.dtype
            for name, parameter in self.block.named_parameters()
            if parameter.ndim == 1 and parameter.is_floating_point() and not self.settings.finder.is_shared(parameter)
        }
        decisions, found = reconstruction.rounding(decisions)
        self._record_learned("rounding", found)
        decisions, found = reconstruction.scales(decisions, others)
        self._record_learned("scales", found)
        return decisions

    def _record_learned(self, what: str, found: Learned) -> None:
        start = f"{found.start:.2e}"
        outcome = f"{start} → {found.best:.2e}" if found.is_better else f"(not kept: no loss below {start})"
        self._record(found.is_better, f"learned {what} {outcome}")

    def _record(self, accepted: bool, what: str) -> None:
        (self.summary.accepted if accepted else self.summary.rejected).append(what)
