"""The steps on one group of linears: each one measures the inputs and makes a decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.recipes import Recipe
from ..equalization.search import search_scale
from ..execution.group_inputs import GroupInputs, run
from ..nn.linear import get_linear
from ..rounding.clipping import FACTORS, diagonal_blocks, search_clipping, second_moments
from ..rounding.damping import Hessians
from ..rounding.gptq import gptq as gptq_codes
from ..rounding.gptq import gptq_on_best_grid
from ..rounding.hessian import MIN_TOKENS, Hessian
from ..rounding.moments import moved_target
from ..rounding.quant_grid import QuantizedWeight, minmax_grid, minmax_grids
from ..rounding.scale_refit import refit_scales
from .decisions import BlockDecisions, folded_view
from .group_context import GroupContext


class Step(Protocol):
    """One way to lower the error of a group of linears."""

    name: str
    """The step's name in the report."""
    rounds: bool
    """Whether it clips grids or chooses codes."""

    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns the decisions so far with the step's own added; None if it makes none."""
        ...


class Equalize:
    """Searches the scale E of the group's input channels and folds it into the producer.

    E has the least λ-weighted mean error of f_s(x, Q(W·E)/E) against f_s(x, W), absolute or squared as the recipe says.
    x is the input of the full-precision model, or, where the linears round their inputs, of the quantized one.
    """

    name, rounds = "equalize", False

    @torch.no_grad()
    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns None if the group is not to be scaled, or no scale lowers the error."""
        if not context.is_equalized:
            return None
        group, block, recipe = context.group, context.block, context.recipe
        activation_bits = decisions.schemes[context.members[0]].activation_bits
        rounds_inputs = activation_bits == 8
        weights = {name: get_linear(block, name).weight for name in context.members}
        wanted: list[Tensor] = []

        def look(inputs: GroupInputs) -> tuple[Tensor, int]:
            x = inputs.hidden_q if rounds_inputs else inputs.hidden
            wanted.append(run(block, group, inputs, x).cpu())
            counted = torch.ones_like(inputs.mask) if context.counts_padding else inputs.mask
            return x[counted].abs().sum(0), int(counted.sum())

        magnitude, count = torch.zeros(len(group.channels), device=context.device), 0
        for size, tokens in context.of_each(look):
            magnitude += size.to(context.device)
            count += tokens
        magnitude /= count

        def loss(scale: Tensor) -> float:
            trial = {
                name: decisions.grid(name, weight * scale, context.dtype).quantize(weight * scale)
                for name, weight in weights.items()
            }
            if not rounds_inputs:
                trial = {name: weight / scale for name, weight in trial.items()}
            targets = iter(wanted)

            def error_of(inputs: GroupInputs) -> tuple[float, float]:
                x = inputs.hidden_q / scale if rounds_inputs else inputs.hidden
                difference = run(block, group, inputs, x, trial, activation_bits) - next(targets).to(context.device)
                error = (difference.abs() if recipe.equalization == "mae" else difference.square()).mean(-1)
                weight = inputs.weights_of_output(error.shape)
                return float((error * weight).sum()), float(weight.sum())

            total, mass = 0.0, 0.0
            for error, weight in context.of_each(error_of):
                total, mass = total + error, mass + weight
            return total / mass if mass else 0.0

        layer = context.name_of(context.members[0])
        best = search_scale(magnitude, loss, group=group, grid_points=recipe.grid_points, layer=layer)
        return decisions.with_scale(group, best.scale) if best.rho > 0 else None


class Clip:
    """Clips the ranges of the group's grids where that lowers each row's own output error."""

    name, rounds = "clip", True

    @torch.no_grad()
    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns None with a recipe that does not clip, or with too few tokens."""
        if not context.recipe.clipping or context.num_tokens < MIN_TOKENS:
            return None
        block, clippings = folded_view(context.block, decisions), {}
        for name in context.members:
            inputs, size = context.quantized_inputs(decisions), decisions.schemes[name].group_size
            moments = second_moments(inputs, size, context.inputs)
            weight = decisions.weight(block, name)
            arguments = decisions.grid_arguments(name, context.dtype)
            clippings[name] = search_clipping(weight, moments, layer=context.name_of(name), **arguments)
        return decisions.with_clippings(clippings)


class Gptq:
    """Chooses the group's codes by GPTQ on the inputs of the quantized model.

    Without clipping it works on min/max grids, as published. With clipping each row gets the range with the least
    error, and its scales are refitted. The target of a row moves by the recipe's share towards the output W x of the
    full-precision model: to W + share · W D H⁻¹ with D = Σ λ (x - x_q) x_qᵀ.
    """

    name, rounds = "gptq", True

    @torch.no_grad()
    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns None with a recipe that rounds to nearest, or with too few tokens."""
        recipe = context.recipe
        if recipe.rounding == "nearest":
            return None
        measured = context.join(decisions) if context.joins else context.measure(decisions)
        moments, damping = measured.moments, measured.damping
        if context.num_tokens < MIN_TOKENS:
            return None
        # Once more samples have joined, the moments are others.
        hessian_of = Hessians(moments.second) if context.joins else measured.hessian_of
        hessian = hessian_of(damping.target)
        block, targets, roundings = folded_view(context.block, decisions), {}, {}
        for name in context.members:
            weight = decisions.weight(block, name)
            targets[name] = moved_target(weight, moments.output_shift(name, weight), hessian, recipe.asymmetric)
        hessian = hessian_of(damping.codes)
        is_trial = context.is_trial and not measured.is_all
        del measured, moments, hessian_of  # the shift is as large as H
        for name, weight in targets.items():
            arguments = decisions.grid_arguments(name, context.dtype)
            rounding = self.codes(name, weight, hessian, arguments, context, is_trial)
            if recipe.rounding != "learned":  # it is not read any more, and it is as large as the weight
                rounding = replace(rounding, source=None)
            roundings[name] = rounding
        return decisions.with_roundings(roundings).with_damping(roundings, damping)

    @staticmethod
    def codes(
        name: str, weight: Tensor, hessian: Hessian, arguments: dict[str, Any], context: GroupContext, is_trial: bool
    ) -> QuantizedWeight:
        """Returns the codes of one linear whose target weight is `weight`; of a trial, those of one grid of many."""
        layer = context.name_of(name)
        if not context.recipe.clipping:
            return gptq_codes(weight, hessian, minmax_grid(weight, **arguments), layer)
        moments = diagonal_blocks(hessian.moment, arguments["group_size"])
        clipping = search_clipping(weight, moments, layer=layer, **arguments)
        grids = [minmax_grid(weight, shrink=clipping.shrink, gain=clipping.gain, **arguments)]
        if is_trial:
            return gptq_codes(weight, hessian, grids[0], layer)
        grids += minmax_grids(weight, FACTORS, **arguments)
        return refit_scales(weight, hessian, gptq_on_best_grid(weight, hessian, grids, layer), context.dtype)


class Rotate:
    """Rotates the group's input as the plan offers, then clips and rounds again.

    Rotation spreads a weight's outliers, so nearest rounding may be worse for it. Hence it is validated together with
    the rounding that follows.
    """

    name, rounds = "rotate", True

    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns None if the members are not all offered the same rotation."""
        offers = {scheme.rotation for scheme in context.schemes.values()}
        rotation = offers.pop()
        if rotation is None or offers:
            return None
        again: Step = clip if context.recipe.rounding == "nearest" else gptq
        rotated = decisions.with_rotations(dict.fromkeys(context.members, rotation))
        return again(context, rotated) or rotated


equalize, clip, gptq, rotate = Equalize(), Clip(), Gptq(), Rotate()


@dataclass(frozen=True)
class Pass:
    """The steps of one pass over a block's groups.

    Attributes:
        steps: in order.
        uses_validation_samples: whether an accepted step is repeated with the validation samples' tokens included.
    """

    steps: tuple[Step, ...]
    uses_validation_samples: bool = False

    @property
    def rounds(self) -> bool:
        """Whether grids are clipped or codes chosen in this pass, and not scales alone."""
        return any(step.rounds for step in self.steps)


def passes(recipe: Recipe) -> list[Pass]:
    """Returns the passes over the block's groups.

    Rounding other than to nearest has a pass of its own: its codes are for weights that no later fold may change.
    """
    if recipe.rounding == "nearest":
        return [Pass((equalize, clip, rotate))]
    rounding = Pass((gptq, rotate), uses_validation_samples=True)
    return [Pass((equalize,)), rounding] if recipe.equalization != "none" else [rounding]
