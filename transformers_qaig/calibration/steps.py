"""The steps on one group of linears: each one measures the inputs and makes a decision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..equalization.fold import Group
from ..equalization.search import search_scale
from ..execution.group_inputs import GroupInputs, run
from ..nn.linear import get_linear
from ..recipes import Recipe
from ..rounding.clipping import FACTORS, diagonal_blocks, search_clipping, second_moments
from ..rounding.gptq import gptq as gptq_codes
from ..rounding.gptq import gptq_on_best_grid
from ..rounding.hessian import MIN_TOKENS, Hessian, HessianAccumulator
from ..rounding.quant_grid import QuantizedWeight, minmax_grid
from ..rounding.scale_refit import refit_scales
from ..scheme import Plan, Rotation
from .decisions import BlockDecisions, folded_view


@dataclass(frozen=True)
class GroupContext:
    """The inputs of a step.

    Attributes:
        block: in fp32, before any decision of this pass; not changed.
        group: the linears that read one tensor.
        schemes: path of each of them that is in the plan → how the plan stores it, with the rotation that it offers.
        inputs: the samples at their entrance, with token weights.
        recipe: the settings of the steps.
        dtype: what the scales are stored in.
        foldable: whether a scale on the tensor can be folded away.
        path: of the block, for warnings.
        counts_padding: whether padding counts when a scale is searched.
        measured: rotation → moments of earlier samples, which are added to those of `inputs`: of hidden_q, of hidden_q
            with hidden - hidden_q, and Σ λ. On the CPU: at 19,000 channels each is 1.4 GB, and they are idle while the
            block is validated.
    """

    block: nn.Module
    group: Group
    schemes: Plan
    inputs: list[GroupInputs]
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
    def num_tokens(self) -> int:
        """The number of real tokens in the inputs."""
        return sum(int(inputs.mask.sum()) for inputs in self.inputs)

    def name_of(self, member: str) -> str:
        """Returns a member's path in the model."""
        return f"{self.path}.{member}"

    def loaded(self) -> Iterator[GroupInputs]:
        """Yields the inputs one after the other, on the block's device."""
        return (inputs.loaded(self.device) for inputs in self.inputs)

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
        second, shift = HessianAccumulator(), HessianAccumulator()
        for inputs in self.loaded():
            x, x_q = inputs.hidden / scale, decisions.inputs(inputs.hidden_q / scale, name)
            weights = inputs.token_weights
            del inputs  # 8192 tokens of 19,000 channels are 0.6 GB
            second.add(x_q, x_q, weights)
            if self.recipe.asymmetric:
                shift.add(x_q, decisions.rotated(x, name).sub_(x_q), weights)
        sums = second.moment, shift.moment, second.mass
        for total, before in zip(sums, self.measured.get(rotation, ())):
            total += before.to(total.device)
        moment, shifts, mass = (total.to("cpu", copy=True) for total in sums)
        self.measured[rotation] = moment, shifts, mass
        divisor = second.mass.clamp(min=1e-12)
        return second.moment.div_(divisor), shift.moment.div_(divisor) if self.recipe.asymmetric else shift.moment


class Step(Protocol):
    """One way to lower the error of a group of linears."""

    name: str
    """The step's name in the report."""

    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns the decisions so far with the step's own added; None if it makes none."""
        ...


class Equalize:
    """Searches the scale E of the group's input channels and folds it into the producer.

    E has the least λ-weighted mean error of f_s(x, Q(W·E)/E) against f_s(x, W), absolute or squared as the recipe says.
    x is the input of the full-precision model, or, where the linears round their inputs, of the quantized one.
    """

    name = "equalize"

    @torch.no_grad()
    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns None if the group is not to be scaled, or no scale lowers the error."""
        if not context.is_equalized:
            return None
        group, block, recipe = context.group, context.block, context.recipe
        activation_bits = decisions.schemes[context.members[0]].activation_bits
        rounds_inputs = activation_bits == 8
        weights = {name: get_linear(block, name).weight for name in context.members}
        wanted, magnitude, count = [], torch.zeros(len(group.channels), device=context.device), 0
        for inputs in context.loaded():
            x = inputs.hidden_q if rounds_inputs else inputs.hidden
            wanted.append(run(block, group, inputs, x).cpu())
            counted = torch.ones_like(inputs.mask) if context.counts_padding else inputs.mask
            magnitude += x[counted].abs().sum(0)
            count += int(counted.sum())
        magnitude /= count

        def loss(scale: Tensor) -> float:
            trial = {
                name: decisions.grid(name, weight * scale, context.dtype).quantize(weight * scale)
                for name, weight in weights.items()
            }
            if not rounds_inputs:
                trial = {name: weight / scale for name, weight in trial.items()}
            total, mass = 0.0, 0.0
            for inputs, target in zip(context.loaded(), wanted):
                x = inputs.hidden_q / scale if rounds_inputs else inputs.hidden
                difference = run(block, group, inputs, x, trial, activation_bits) - target.to(context.device)
                error = (difference.abs() if recipe.equalization == "mae" else difference.square()).mean(-1)
                weight = inputs.weights_of_output(error.shape)
                total, mass = total + float((error * weight).sum()), mass + float(weight.sum())
            return total / mass if mass else 0.0

        layer = context.name_of(context.members[0])
        best = search_scale(magnitude, loss, group=group, grid_points=recipe.grid_points, layer=layer)
        return decisions.with_scale(group, best.scale) if best.rho > 0 else None


class Clip:
    """Clips the ranges of the group's grids where that lowers each row's own output error."""

    name = "clip"

    @torch.no_grad()
    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns None with a recipe that does not clip, or with too few tokens."""
        if not context.recipe.clipping or context.num_tokens < MIN_TOKENS:
            return None
        block, clippings = folded_view(context.block, decisions), {}
        for name in context.members:
            moments = second_moments(context.quantized_inputs(decisions), decisions.schemes[name].group_size)
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

    name = "gptq"

    @torch.no_grad()
    def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns None with a recipe that rounds to nearest, or with too few tokens."""
        recipe = context.recipe
        if recipe.rounding == "nearest" or (context.num_tokens < MIN_TOKENS and not context.measured):
            return None
        moment, shift = context.measure(decisions)
        hessian = Hessian.of(moment)
        block, roundings = folded_view(context.block, decisions), {}
        targets = {name: decisions.weight(block, name) for name in context.members}
        if recipe.asymmetric:
            for name, weight in targets.items():
                targets[name] = weight + recipe.asymmetric * hessian.solve(shift @ weight.T).T
        del shift  # as large as H
        for name, weight in targets.items():
            rounding = self.codes(name, weight, hessian, decisions.grid_arguments(name, context.dtype), context)
            if recipe.rounding != "learned":  # it is not read any more, and it is as large as the weight
                rounding = replace(rounding, source=None)
            roundings[name] = rounding
        return decisions.with_roundings(roundings)

    @staticmethod
    def codes(
        name: str, weight: Tensor, hessian: Hessian, arguments: dict[str, Any], context: GroupContext
    ) -> QuantizedWeight:
        """Returns the codes of one linear whose target weight is `weight`."""
        layer = context.name_of(name)
        if not context.recipe.clipping:
            return gptq_codes(weight, hessian, minmax_grid(weight, **arguments), layer)
        moments = diagonal_blocks(hessian.moment, arguments["group_size"])
        clipping = search_clipping(weight, moments, layer=layer, **arguments)
        grids = [minmax_grid(weight, shrink=clipping.shrink, gain=clipping.gain, **arguments)]
        grids += [minmax_grid(weight, shrink=factor, **arguments) for factor in FACTORS]
        return refit_scales(weight, hessian, gptq_on_best_grid(weight, hessian, grids, layer), context.dtype)


class Rotate:
    """Rotates the group's input as the plan offers, then clips and rounds again.

    Rotation spreads a weight's outliers, so nearest rounding may be worse for it. Hence it is validated together with
    the rounding that follows.
    """

    name = "rotate"

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
        return clip in self.steps or gptq in self.steps


def passes(recipe: Recipe) -> list[Pass]:
    """Returns the passes over the block's groups.

    Rounding other than to nearest has a pass of its own: its codes are for weights that no later fold may change.
    """
    if recipe.rounding == "nearest":
        return [Pass((equalize, clip, rotate))]
    rounding = Pass((gptq, rotate), uses_validation_samples=True)
    return [Pass((equalize,)), rounding] if recipe.equalization != "none" else [rounding]
