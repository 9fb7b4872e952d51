"""The stages of one group of linears, as the conductor calls them: each turns what was measured into a choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..equalization.fold import Group
from ..equalization.search import search_scale
from ..nn.hadamard import Rotation
from ..nn.linear import get_linear
from ..recipes import Recipe
from ..rounding.clipping import FACTORS, diagonal_blocks, search_clipping, second_moments
from ..rounding.gptq import gptq, gptq_on_best_grid
from ..rounding.grid import minmax_grid
from ..rounding.moments import Curvature, cross_moment, second_moment
from ..rounding.scales import refit_scales
from .choices import Choices, folded
from .subblock import Piece, run

MIN_TOKENS = 64
"""With fewer real tokens the second moments say too little to clip or to round by."""


@dataclass(frozen=True)
class Site:
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
        activation_bits: 8 if the linears will round their inputs.
    """

    block: nn.Module
    group: Group
    members: list[str]
    pieces: list[Piece]
    recipe: Recipe
    dtype: torch.dtype
    foldable: bool
    activation_bits: int = 16

    @property
    def device(self) -> torch.device:
        return next(self.block.parameters()).device

    @property
    def is_equalized(self) -> bool:
        """Whether the recipe searches a scale for this group."""
        shared = len(set(self.group.channels)) < len(self.group.channels)
        return self.recipe.equalization != "none" and self.foldable and (self.recipe.share_channels or not shared)

    @property
    def num_tokens(self) -> int:
        return sum(int(piece.real.sum()) for piece in self.pieces)

    def loaded(self) -> Iterator[Piece]:
        """The pieces one after the other, on the block's device."""
        return (piece.loaded(self.device) for piece in self.pieces)

    def quantized_inputs(self, choices: Choices) -> Iterator[tuple[Tensor, Tensor]]:
        """What the linears multiply in the quantized stream once `choices` is folded, and the token weights."""
        scale = next((e for g, e in choices.scales if g is self.group), torch.ones(())).to(self.device)
        return ((choices.inputs(piece.x_q / scale, self.members[0]), piece.weights) for piece in self.loaded())

    def drifts(self, choices: Choices) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The same inputs, how far the full-precision stream's are from them, and the token weights."""
        scale = next((e for g, e in choices.scales if g is self.group), torch.ones(())).to(self.device)
        for piece in self.loaded():
            x_q = choices.inputs(piece.x_q / scale, self.members[0])
            yield x_q, choices.rotated(piece.x / scale, self.members[0]) - x_q, piece.weights


Stage = Callable[[Site, Choices], Choices]


@torch.no_grad()
def equalize(site: Site, choices: Choices) -> Choices:
    """
    The choices with the group's E of least λ-weighted mean error of f_s(x, Q(W·E)/E) against f_s(x, W), absolute or
    squared as the recipe says; x is the input of the full-precision stream, or, where the linears round their inputs,
    of the quantized one.

    The same choices if the group is not to be scaled.
    """
    if not site.is_equalized:
        return choices
    group, block, recipe = site.group, site.block, site.recipe
    rounds_inputs = site.activation_bits == 8
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
            difference = run(block, group, piece, x, trial, site.activation_bits) - target.to(site.device)
            error = (difference.abs() if recipe.equalization == "mae" else difference.square()).mean(-1)
            weight = piece.weights if piece.weights.shape == error.shape else torch.ones_like(error)
            total, mass = total + float((error * weight).sum()), mass + float(weight.sum())
        return total / mass if mass else 0.0

    best = search_scale(magnitude, loss, group=group, grid_points=recipe.grid_points)
    return choices.with_scale(group, best.scale) if best.rho > 0 else choices


@torch.no_grad()
def clip(site: Site, choices: Choices) -> Choices:
    """The choices with the ranges of the group's grids clipped where that lowers each row's own output error."""
    if not site.recipe.clipping or site.num_tokens < MIN_TOKENS:
        return choices
    block, clippings = folded(site.block, choices), {}
    for name in site.members:
        moments = second_moments(site.quantized_inputs(choices), choices.entries[name]["group_size"])
        weight = choices.weight(block, name)
        clippings[name] = search_clipping(weight, moments, **choices.grid_arguments(name, site.dtype))
    return choices.with_clippings(clippings)


@torch.no_grad()
def compensate(site: Site, choices: Choices) -> Choices:
    """
    The choices with the group's codes by GPTQ on the inputs of the quantized stream.

    Without clipping on min/max grids, as published. With it each row gets the range that serves it best, its scales are
    refitted, and what it aims at moves by the recipe's share towards the output W x of the full-precision stream: to
    W + share · W D H⁻¹ with D = Σ λ (x - x_q) x_qᵀ.
    """
    recipe = site.recipe
    if recipe.rounding == "nearest" or site.num_tokens < MIN_TOKENS:
        return choices
    curvature = Curvature.of(second_moment(site.quantized_inputs(choices)))
    drift = cross_moment(site.drifts(choices)) if recipe.drift else None
    block, roundings = folded(site.block, choices), {}
    for name in site.members:
        weight = choices.weight(block, name)
        if drift is not None:
            weight = weight + recipe.drift * curvature.solve(drift @ weight.T).T
        arguments = choices.grid_arguments(name, site.dtype)
        if recipe.clipping:
            moments = diagonal_blocks(curvature.moment, arguments["group_size"])
            clipping = search_clipping(weight, moments, **arguments)
            grids = [minmax_grid(weight, shrink=clipping.shrink, gain=clipping.gain, **arguments)]
            grids += [minmax_grid(weight, shrink=factor, **arguments) for factor in FACTORS]
            rounding = gptq_on_best_grid(weight, curvature, grids)
            roundings[name] = refit_scales(weight, curvature, rounding, site.dtype)
        else:
            roundings[name] = gptq(weight, curvature, minmax_grid(weight, **arguments))
        if recipe.rounding != "learned":  # nobody goes on from there, and it is as large as the weight
            roundings[name] = replace(roundings[name], source=None)
    return choices.with_roundings(roundings)


@torch.no_grad()
def rotate(site: Site, choices: Choices) -> Choices:
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
