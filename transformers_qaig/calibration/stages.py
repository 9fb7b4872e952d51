"""The stages of one group of linears, as the conductor calls them: each turns what was measured into a choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..attribution.tokens import qig, qig_linear, token_importance
from ..equalization.fold import Group
from ..equalization.search import search_scale
from ..nn.linear import get_linear
from ..recipes import Recipe
from ..rounding.clipping import search_clipping, second_moments
from .choices import Choices, folded
from .subblock import Piece, run

MIN_TOKENS = 64
"""With fewer real tokens the second moments say too little to clip by."""


def weigh_tokens(
    original: nn.Module,
    group: Group,
    choices: Choices,
    pieces: Sequence[Piece],
    recipe: Recipe,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """
    Set λ of every piece: uniform over real tokens, or QIG with the quantized stream's input as baseline.

    f^q has every linear of the sub-block rounded to nearest, from its original weights.
    """
    if recipe.token_weights == "uniform":
        for piece in pieces:
            piece.weights = piece.real.float()
        return
    plain = Choices(choices.entries, choices.include_zero)
    prefix = f"{group.module}." if group.module else ""
    inside = [name for name in choices.entries if f"{name}.".startswith(prefix)]
    weights = {name: get_linear(original, name).weight for name in inside}
    weights_q = {name: plain.grid(name, weight, dtype).quantize(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    for waiting in pieces:
        piece = waiting.loaded(_device(original))
        if group.linears == (group.module,):
            attribution = qig_linear(piece.x, piece.x_q, weights[group.module] - weights_q[group.module])
        else:

            def difference(x: Tensor, piece: Piece = piece) -> Tensor:
                return run(original, group, piece, x) - run(original, group, piece, x, weights_q)

            attribution = qig(difference, piece.x, piece.x_q, nodes=recipe.nodes)
        rows = attribution.reshape(-1, attribution.shape[-1]).split(piece.lengths)
        importance = []
        for values, real in zip(rows, piece.real.reshape(-1).split(piece.lengths)):
            weight = token_importance(values[None], real[None])[0]
            if recipe.token_weights == "shuffled":
                weight[real] = weight[real][torch.randperm(int(real.sum()), generator=generator).to(weight.device)]
            importance.append(weight)
        waiting.weights = torch.cat(importance).reshape(piece.real.shape).cpu()


@torch.no_grad()
def equalize(
    original: nn.Module,
    group: Group,
    choices: Choices,
    pieces: Sequence[Piece],
    recipe: Recipe,
    dtype: torch.dtype,
    foldable: bool,
) -> Choices:
    """
    The choices with the group's E of least λ-weighted mean absolute error of f_s(x, Q(W·E)/E) against f_s(x, W).

    The same choices if the group is not to be scaled.
    """
    shared = len(set(group.channels)) < len(group.channels)
    if not recipe.equalization or not foldable or (shared and not recipe.share_channels):
        return choices
    weights = {name: get_linear(original, name).weight for name in group.linears if name in choices.entries}
    device = _device(original)
    wanted, magnitude, count = [], torch.zeros(len(group.channels), device=device), 0
    for piece in (waiting.loaded(device) for waiting in pieces):
        wanted.append(run(original, group, piece, piece.x).cpu())
        magnitude += piece.x[piece.real].abs().sum(0)
        count += int(piece.real.sum())
    magnitude /= count

    def loss(scale: Tensor) -> float:
        trial = {
            name: choices.grid(name, weight * scale, dtype).quantize(weight * scale) / scale
            for name, weight in weights.items()
        }
        total, mass = 0.0, 0.0
        for piece, target in zip((waiting.loaded(device) for waiting in pieces), wanted):
            error = (run(original, group, piece, piece.x, trial) - target.to(device)).abs().mean(-1)
            weight = piece.weights if piece.weights.shape == error.shape else torch.ones_like(error)
            total, mass = total + float((error * weight).sum()), mass + float(weight.sum())
        return total / mass

    best = search_scale(magnitude, loss, group=group, grid_points=recipe.grid_points)
    return choices.with_scale(group, best.scale) if best.rho > 0 else choices


@torch.no_grad()
def clip(
    original: nn.Module,
    group: Group,
    choices: Choices,
    pieces: Sequence[Piece],
    recipe: Recipe,
    dtype: torch.dtype,
    foldable: bool,
) -> Choices:
    """The choices with the ranges of the group's grids clipped where that lowers each row's own output error."""
    if not recipe.clipping or sum(int(piece.real.sum()) for piece in pieces) < MIN_TOKENS:
        return choices
    block = folded(original, choices)
    scale = next((e for g, e in choices.scales if g is group), torch.ones(()))
    device, clippings = _device(original), {}
    for name in group.linears:
        if name in choices.entries:
            inputs = ((p.x_q / scale.to(device), p.weights) for p in (waiting.loaded(device) for waiting in pieces))
            moments = second_moments(inputs, choices.entries[name]["group_size"])
            weight = get_linear(block, name).weight.data
            clippings[name] = search_clipping(weight, moments, **choices.grid_arguments(name, dtype))
    return choices.with_clippings(clippings)


def _device(block: nn.Module) -> torch.device:
    return next(block.parameters()).device
