"""Quantizes one block: its groups of linears go through the recipe's steps, and steps that do harm are rejected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from torch import Tensor, nn

from ..equalization.fold import Group
from ..execution.block_outputs import OutputError, first_tensor, forward, is_finite_where
from ..execution.exclusions import NotFinite
from ..execution.gathering import gather_group_inputs
from ..execution.group_inputs import NotReached
from ..execution.interceptor import TargetInputs
from ..execution.token_rows import row_mask
from ..nn.experts_module import LinearExperts
from ..report.summary import TargetSummary
from ..scheme import Plan
from ..token_weights.base import SubBlock
from ..utils.finite import is_finite
from .decisions import BlockDecisions, cast_like, copy_block, dtype_of, folded_view, in_float32, rounded
from .experts import StackStep
from .quantizer_settings import QuantizerSettings
from .reconstruction import BlockReconstruction
from .routed_rows import Entrance, RoutedRows, gather_routed
from .steps import GroupContext, Pass, passes

VALIDATION_EVERY = 4
"""Every fourth sample is held back from the searches, for validation."""
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
        samples = list(inputs.full)
        self.validation = samples[::VALIDATION_EVERY] if self.recipe.validate else []
        self.calibration = [sample for sample in samples if sample not in self.validation] or self.validation
        self.wanted: dict[int, Tensor] = {}
        experts = (name for name, module in block.named_modules() if isinstance(module, LinearExperts))
        self.stacks = {stack: [name for name in schemes if name.startswith(f"{stack}.")] for stack in experts}

    def decide(self) -> BlockDecisions:
        """Makes the decisions, and describes them in `summary`.

        Raises:
            NotFinite: a sample is not finite on the way.
        """
        self.wanted = self._full_outputs(self.validation)
        decisions = self.nothing
        example = self.inputs.full[self.calibration[0]].to(next(self.block.parameters()).device)
        groups = self.settings.finder.groups(self.block, example.args, example.kwargs)
        alone = set(self.schemes).difference(*(group.linears for group in groups), *self.stacks.values())
        self.summary.to_nearest = dict.fromkeys(sorted(alone), "it never runs")
        for steps in passes(self.recipe):
            decisions = self._pass(groups, steps, decisions)
        if self.recipe.rounding == "learned":
            decisions, self.summary.to_nearest = self._learn(decisions), {}
        return decisions

    def _pass(self, groups: Sequence[Group], steps: Pass, earlier: BlockDecisions) -> BlockDecisions:
        """Takes every group through the steps, in the block that has the earlier decisions' scales folded."""
        original = folded_view(self.in_float32, earlier)
        full = cast_like(copy_block(original), self.block) if earlier.scales else self.block
        decisions = self.nothing
        done: list[str] = []
        for group in groups:
            schemes = {name: self.schemes[name] for name in group.linears if name in self.schemes}
            if not schemes:
                continue
            sees_rounding = self.settings.token_weights.sees_earlier_rounding
            blocks = full, self._rounded(original, decisions, done) if sees_rounding else full
            done += schemes
            context = GroupContext(
                original,
                group,
                schemes,
                [],
                self.recipe,
                self.dtype,
                foldable=self.settings.finder.foldable(self.block, group),
                path=self.summary.path,
                counts_padding=self.settings.token_weights.counts_padding,
            )
            try:
                context = self._gather(context, decisions, blocks, self.calibration)
            except NotReached as found:
                self.summary.to_nearest.update(dict.fromkeys(schemes, str(found)))
                continue
            decisions = self._group(context, decisions, steps, blocks, done)
        if steps.rounds:
            for stack, names in self.stacks.items():
                if names:
                    decisions = self._stack(stack, names, decisions, steps, original, full, done)
        return decisions.after(earlier)

    def _stack(
        self,
        stack: str,
        names: list[str],
        decisions: BlockDecisions,
        steps: Pass,
        original: nn.Module,
        full: nn.Module,
        done: list[str],
    ) -> BlockDecisions:
        """Quantizes all experts of a stack as one step, and keeps that if it does not raise the validation error."""
        blocks = full, self._rounded(original, decisions, done)
        done += names
        schemes = {name: self.schemes[name] for name in names}
        group = Group(tuple(names), stack, None, ())
        context = GroupContext(
            original, group, schemes, [], self.recipe, self.dtype, foldable=False, path=self.summary.path
        )
        step = StackStep(stack, context, self.settings.expert_memory)
        if not step.decides:
            return decisions
        where = Entrance(stack, self.block, original, blocks, schemes, decisions.include_zero, self.dtype)

        def gather(samples: Sequence[int]) -> RoutedRows:
            weights, everywhere = self.settings.token_weights, self.settings.all_experts
            return gather_routed(where, self.inputs, samples, weights, everywhere)

        try:
            candidate = step(gather(self.calibration), decisions)
        except NotReached as found:
            self.summary.to_nearest.update(dict.fromkeys(names, str(found)))
            return decisions
        if candidate is None:
            return decisions
        level = self._validation_error(original, decisions, done)
        if self._lower(f"experts {stack}", original, candidate, done, level) is None:
            return decisions
        if steps.uses_validation_samples and self.validation:
            candidate = step(gather([*self.calibration, *self.validation]), decisions) or candidate
        self.summary.averaged[stack] = len(step.averaged)
        return candidate

    def _group(
        self,
        context: GroupContext,
        decisions: BlockDecisions,
        steps: Pass,
        blocks: tuple[nn.Module, nn.Module],
        done: list[str],
    ) -> BlockDecisions:
        """Takes one group through the steps, and keeps those that do not raise the validation error."""
        level = self._validation_error(context.block, decisions, done)
        for step in steps.steps:
            candidate = step(context, decisions)
            if candidate is None:
                continue
            new_level = self._lower(f"{step.name} {', '.join(context.members)}", context.block, candidate, done, level)
            if new_level is None:
                continue
            if steps.uses_validation_samples and self.validation:
                # Validation is over, so these samples now join the calibration data.
                with suppress(NotReached):
                    candidate = step(self._gather(context, decisions, blocks, self.validation), decisions) or decisions
            decisions, level = candidate, new_level
        return decisions

    def _lower(
        self, what: str, original: nn.Module, candidate: BlockDecisions, done: list[str], level: float
    ) -> float | None:
        """Returns the candidate's validation error if it is below `level` or there is none to measure; else None."""
        try:
            new_level = self._validation_error(original, candidate, done)
        except NotFinite:
            self._note(False, f"{what} (its output is not finite)")
            return None
        better = new_level < level or not self.validation
        self._note(better, what)
        return new_level if better else None

    def _gather(
        self,
        context: GroupContext,
        decisions: BlockDecisions,
        blocks: tuple[nn.Module, nn.Module],
        samples: Sequence[int],
    ) -> GroupContext:
        """Returns the context with the inputs of some samples and their token weights.

        Raises:
            NotReached: none of the samples can be used.
        """
        inputs = gather_group_inputs(context.block, context.group, blocks, self.inputs, samples)
        context = replace(context, inputs=inputs)
        sub_block = SubBlock(
            self.block,
            context.block,
            context.group,
            inputs,
            decisions.schemes,
            decisions.include_zero,
            self.dtype,
            context.is_equalized,
        )
        for one, weights in zip(inputs, self.settings.token_weights.weigh(sub_block)):
            one.token_weights = weights
            if not is_finite(weights):
                each = one.token_weights_by_sample().items()
                sample = next(sample for sample, rows in each if not all(map(is_finite, rows)))
                raise NotFinite(sample, f"the token weights at {context.members[0]}")
        if self.recipe.token_weights != "uniform":
            shown = {s: w for one in inputs for s, w in one.first_sequence_weights().items() if s < SHOWN}
            self.summary.token_weights.setdefault(context.group.module, {}).update(shown)
        return context

    def _validation_error(self, original: nn.Module, candidate: BlockDecisions, done: list[str]) -> float:
        """Computes the output error on the validation samples, with the linears in `done` rounded as `candidate` says.

        Raises:
            NotFinite: the output for one of them is not finite.
        """
        if not self.validation:
            return float("inf")
        trial, error = self._rounded(original, candidate, done), OutputError()
        for sample in self.validation:
            output = first_tensor(forward(trial, self.inputs.quantized[sample]))
            if not error.add(output, self.wanted[sample].to(output.device), self.inputs.masks[sample]):
                raise NotFinite(sample, f"the output with {', '.join(done)} rounded")
        return 0.0 if math.isnan(error.value) else error.value  # no token to validate by

    def _rounded(self, original: nn.Module, decisions: BlockDecisions, names: list[str]) -> nn.Module:
        return cast_like(rounded(original, decisions, names, self.dtype), self.block)

    def _learn(self, decisions: BlockDecisions) -> BlockDecisions:
        """Learns the block as a whole: its rounding, then its scales and the other parameters around the linears."""
        inputs = self.inputs
        targets = self._full_outputs(inputs.full)
        learner = BlockReconstruction(
            self.in_float32,
            inputs.quantized,
            targets,
            {sample: row_mask(inputs.masks[sample], target).float() for sample, target in targets.items()},
            self.validation or self.calibration,
            self.recipe.steps,
            self.settings.seed,
            self.dtype,
        )
        others = {
            name: parameter.dtype
            for name, parameter in self.block.named_parameters()
            if parameter.ndim == 1 and parameter.is_floating_point() and not self.settings.finder.is_shared(parameter)
        }
        decisions, found = learner.rounding(decisions)
        self._note(found.is_better, f"learned rounding {found.start:.2e} → {found.best:.2e}")
        decisions, found = learner.scales(decisions, others)
        self._note(found.is_better, f"learned scales {found.start:.2e} → {found.best:.2e}")
        return decisions

    def _full_outputs(self, samples: Iterable[int]) -> dict[int, Tensor]:
        """Computes the block's outputs for some samples in full precision, finite at real tokens; on the CPU."""
        outputs = {}
        for sample in samples:
            outputs[sample] = first_tensor(forward(self.block, self.inputs.full[sample])).cpu()
            if not is_finite_where(self.inputs.masks[sample], outputs[sample]):
                raise NotFinite(sample, "the full-precision output")
        return outputs

    def _note(self, accepted: bool, what: str) -> None:
        (self.summary.accepted if accepted else self.summary.rejected).append(what)
