"""The stages of one group of linears, as the conductor calls them: each turns what was measured into a choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..equalization.fold import Group
from ..equalization.search import search_scale
from ..nn.hadamard import Rotation
from ..nn.linear import get_linear
from ..recipes import Recipe
from ..rounding.clipping import FACTORS, diagonal_blocks, search_clipping, second_moments
from ..rounding.gptq import gptq, gptq_on_best_grid
from ..rounding.hessian import MIN_TOKENS, Hessian, HessianAccumulator
from ..rounding.quant_grid import minmax_grid
from ..rounding.scale_refit import refit_scales
from .decisions import BlockDecisions, folded_view
from .group_inputs import GroupInputs, run


@dataclass(frozen=True)
class GroupContext:
    """
    Where a stage works.

    Attributes:
        block: in fp32, before any choice of this pass; not changed.
        group: the linears that read one tensor.
        members: those of them that are in the plan.
        pieces: the samples at their entrance, with token weights.
        recipe: how.
        dtype: what the scales are stored in.
        foldable: whether a scale on the tensor can be folded away.
        bits: what the widest of the members is stored in.
        path: of the block, for warnings.
        measured: rotation → moments of pieces that stood here before, added to those of `pieces`: of x_q, of x_q with
            x - x_q, and Σ λ. On the CPU: at 19,000 channels each is 1.4 GB, and they wait while the block is judged.
    """

    block: nn.Module
    group: Group
    members: list[str]
    pieces: list[GroupInputs]
    recipe: Recipe
    dtype: torch.dtype
    foldable: bool
    bits: int
    path: str = ""
    measured: dict[Rotation | None, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.block.parameters()).device

    @property
    def is_equalized(self) -> bool:
        """Whether the recipe searches a scale for this group."""
        shared = len(set(self.group.channels)) < len(self.group.channels)
        recipe = self.recipe
        wanted = recipe.equalization != "none" and self.bits <= recipe.equalization_bits
        return wanted and self.foldable and (recipe.equalize_gqa or not shared)

    @property
    def num_tokens(self) -> int:
        return sum(int(piece.real.sum()) for piece in self.pieces)

    def name_of(self, member: str) -> str:
        """Where a member is in the model."""
        return f"{self.path}.{member}"

    def loaded(self) -> Iterator[GroupInputs]:
        """The pieces one after the other, on the block's device."""
        return (piece.loaded(self.device) for piece in self.pieces)

    def scale(self, choices: BlockDecisions) -> Tensor:
        """E that `choices` folds into the group; 1 if none."""
        return next((e for g, e in choices.scales if g is self.group), torch.ones(())).to(self.device)

    def quantized_inputs(self, choices: BlockDecisions) -> Iterator[tuple[Tensor, Tensor]]:
        """What the linears multiply in the quantized stream once `choices` is folded, and the token weights."""
        scale = self.scale(choices)
        return ((choices.inputs(piece.x_q / scale, self.members[0]), piece.weights) for piece in self.loaded())

    def measure(self, choices: BlockDecisions) -> tuple[Tensor, Tensor]:
        """
        Σ λ x_q x_qᵀ / Σ λ and, where the recipe asks for it, Σ λ x_q (x - x_q)ᵀ / Σ λ, of all pieces so far; x_q is
        what the linears multiply in the quantized stream, x what they would in the full-precision one.
        """
        scale, name, rotation = self.scale(choices), self.members[0], choices.rotations.get(self.members[0])
        second, drift = HessianAccumulator(), HessianAccumulator()
        for piece in self.loaded():
            x, x_q, weights = piece.x / scale, choices.inputs(piece.x_q / scale, name), piece.weights
            del piece  # 8192 tokens of 19,000 channels are 0.6 GB
            second.add(x_q, x_q, weights)
            if self.recipe.asymmetric:
                drift.add(x_q, choices.rotated(x, name).sub_(x_q), weights)
        sums = second.moment, drift.moment, second.mass
        for total, before in zip(sums, self.measured.get(rotation, ())):
            total += before.to(total.device)
        moment, drifts, mass = (total.to("cpu", copy=True) for total in sums)
        self.measured[rotation] = moment, drifts, mass
        divisor = second.mass.clamp(min=1e-12)
        return second.moment.div_(divisor), drift.moment.div_(divisor) if self.recipe.asymmetric else drift.moment


Step = Callable[[GroupContext, BlockDecisions], BlockDecisions]


@torch.no_grad()
def equalize(site: GroupContext, choices: BlockDecisions) -> BlockDecisions:
    """
    The choices with the group's E of least λ-weighted mean error of f_s(x, Q(W·E)/E) against f_s(x, W), absolute or
    squared as the recipe says; x is the input of the full-precision stream, or, where the linears round their inputs,
    of the quantized one.

    The same choices if the group is not to be scaled.
    """
    if not site.is_equalized:
        return choices
    group, block, recipe = site.group, site.block, site.recipe
    rounds_inputs = choices.activation_bits == 8
    weights = {name: get_linear(block, name).weight for name in site.members}
    wanted, magnitude, count = [], torch.zeros(len(group.channels), device=site.device), 0
    for piece in site.loaded():
        x = piece.x_q if rounds_inputs else piece.x
        wanted.append(run(block, group, piece, x).cpu())
        real = torch.ones_like(piece.real) if recipe.token_weights == "authors" else piece.real  # there padding counts
        magnitude += x[real].abs().sum(0)
        count += int(real.sum())
    magnitude /= count

    def loss(scale: Tensor) -> float:
        trial = {
            name: choices.grid(name, weight * scale, site.dtype).quantize(weight * scale)
            for name, weight in weights.items()
        }
        if not rounds_inputs:
            trial = {name: weight / scale for name, weight in trial.items()}
        total, mass = 0.0, 0.0
        for piece, target in zip(site.loaded(), wanted):
            x = piece.x_q / scale if rounds_inputs else piece.x
            difference = run(block, group, piece, x, trial, choices.activation_bits) - target.to(site.device)
            error = (difference.abs() if recipe.equalization == "mae" else difference.square()).mean(-1)
            weight = piece.weights if piece.weights.shape == error.shape else torch.ones_like(error)
            total, mass = total + float((error * weight).sum()), mass + float(weight.sum())
        return total / mass if mass else 0.0

    layer = site.name_of(site.members[0])
    best = search_scale(magnitude, loss, group=group, grid_points=recipe.grid_points, layer=layer)
    return choices.with_scale(group, best.scale) if best.rho > 0 else choices


@torch.no_grad()
def clip(site: GroupContext, choices: BlockDecisions) -> BlockDecisions:
    """The choices with the ranges of the group's grids clipped where that lowers each row's own output error."""
    if not site.recipe.clipping or site.num_tokens < MIN_TOKENS:
        return choices
    block, clippings = folded_view(site.block, choices), {}
    for name in site.members:
        moments = second_moments(site.quantized_inputs(choices), choices.entries[name]["group_size"])
        weight = choices.weight(block, name)
        arguments = choices.grid_arguments(name, site.dtype)
        clippings[name] = search_clipping(weight, moments, layer=site.name_of(name), **arguments)
    return choices.with_clippings(clippings)


@torch.no_grad()
def compensate(site: GroupContext, choices: BlockDecisions) -> BlockDecisions:
    """
    The choices with the group's codes by GPTQ on the inputs of the quantized stream.

    Without clipping on min/max grids, as published. With it each row gets the range that serves it best, its scales are
    refitted, and what it aims at moves by the recipe's share towards the output W x of the full-precision stream: to
    W + share · W D H⁻¹ with D = Σ λ (x - x_q) x_qᵀ.
    """
    recipe = site.recipe
    if recipe.rounding == "nearest" or (site.num_tokens < MIN_TOKENS and not site.measured):
        return choices
    moment, drift = site.measure(choices)
    curvature = Hessian.of(moment)
    block, roundings = folded_view(site.block, choices), {}
    targets = {name: choices.weight(block, name) for name in site.members}
    if recipe.asymmetric:
        for name, weight in targets.items():
            targets[name] = weight + recipe.asymmetric * curvature.solve(drift @ weight.T).T
    del drift  # as large as H
    for name, weight in targets.items():
        arguments, layer = choices.grid_arguments(name, site.dtype), site.name_of(name)
        if recipe.clipping:
            moments = diagonal_blocks(curvature.moment, arguments["group_size"])
            clipping = search_clipping(weight, moments, layer=layer, **arguments)
            grids = [minmax_grid(weight, shrink=clipping.shrink, gain=clipping.gain, **arguments)]
            grids += [minmax_grid(weight, shrink=factor, **arguments) for factor in FACTORS]
            rounding = gptq_on_best_grid(weight, curvature, grids, layer)
            roundings[name] = refit_scales(weight, curvature, rounding, site.dtype)
        else:
            roundings[name] = gptq(weight, curvature, minmax_grid(weight, **arguments), layer)
        if recipe.rounding != "learned":  # nobody goes on from there, and it is as large as the weight
            roundings[name] = replace(roundings[name], source=None)
    return choices.with_roundings(roundings)


@torch.no_grad()
def rotate(site: GroupContext, choices: BlockDecisions) -> BlockDecisions:
    """
    The choices with the group's input rotated as the plan offers, and clipped and rounded anew.

    Rotation spreads a weight's outliers, and nearest rounding may well be worse for it; so it is judged together with
    the rounding that follows. The same choices if the members are not all offered the same.
    """
    offers = {Rotation.of(choices.entries[name]) for name in site.members}
    rotation = offers.pop()
    if rotation is None or offers:
        return choices
    again = clip if site.recipe.rounding == "nearest" else compensate
    return again(site, choices.with_rotations(dict.fromkeys(site.members, rotation)))
