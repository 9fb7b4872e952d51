"""The stages of one group of linears, as the conductor calls them: each turns what was measured into a choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..attribution.tokens import qig, qig_linear, token_importance
from ..equalization.fold import Group
from ..equalization.search import search_scale
from ..recipes import Recipe
from ..rounding.clipping import search_shrink, second_moments
from .choices import Choices, folded
from .subblock import Piece, run


def weigh_tokens(
    original: nn.Module, group: Group, choices: Choices, pieces: Sequence[Piece], recipe: Recipe, dtype: torch.dtype
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
    weights = {name: original.get_submodule(name).weight for name in inside}
    weights_q = {name: plain.grid(name, weight, dtype).quantize(weight) for name, weight in weights.items()}
    for piece in pieces:
        if group.linears == (group.module,):
            attribution = qig_linear(piece.x, piece.x_q, weights[group.module] - weights_q[group.module])
        else:

            def difference(x: Tensor, piece: Piece = piece) -> Tensor:
                return run(original, group, piece, x) - run(original, group, piece, x, weights_q)

            attribution = qig(difference, piece.x, piece.x_q)
        sequences = zip(
            attribution.reshape(-1, attribution.shape[-1]).split(piece.lengths),
            piece.real.reshape(-1).split(piece.lengths),
        )
        importance = [token_importance(values[None], real[None])[0] for values, real in sequences]
        piece.weights = torch.cat(importance).reshape(piece.real.shape)


@torch.no_grad()
def equalize(
    original: nn.Module, group: Group, choices: Choices, pieces: Sequence[Piece], recipe: Recipe, dtype: torch.dtype
) -> Tensor | None:
    """
    The λ-weighted search for the group's E by the mean absolute error of f_s(x, Q(W·E)/E) against f_s(x, W).

    Returns:
        E fp32 [C]; None if the group is not to be scaled.
    """
    if not recipe.share_channels and len(set(group.channels)) < len(group.channels):
        return None
    weights = {name: original.get_submodule(name).weight for name in group.linears if name in choices.entries}
    wanted = [run(original, group, piece, piece.x) for piece in pieces]
    count = sum(piece.real.sum() for piece in pieces)
    magnitude = torch.stack([piece.x[piece.real].abs().sum(0) for piece in pieces]).sum(0) / count

    def loss(scale: Tensor) -> float:
        trial = {
            name: choices.grid(name, weight * scale, dtype).quantize(weight * scale) / scale
            for name, weight in weights.items()
        }
        total, mass = torch.zeros(()), torch.zeros(())
        for piece, target in zip(pieces, wanted):
            error = (run(original, group, piece, piece.x, trial) - target).abs().mean(-1)
            weight = piece.weights if piece.weights.shape == error.shape else torch.ones_like(error)
            total, mass = total.to(error) + (error * weight).sum(), mass.to(error) + weight.sum()
        return float(total / mass)

    best = search_scale(magnitude, loss, group=group, grid_points=recipe.grid_points)
    return best.scale if best.rho > 0 else None


@torch.no_grad()
def clip(original: nn.Module, group: Group, choices: Choices, pieces: Sequence[Piece], dtype: torch.dtype) -> Choices:
    """The choices with the ranges of the group's grids shrunk where that lowers each row's own output error."""
    block = folded(original, choices)
    scale = next((e for g, e in choices.scales if g is group), torch.ones(()))
    xs, weights = [piece.x_q / scale.to(piece.x_q) for piece in pieces], [piece.weights for piece in pieces]
    shrinks = {}
    for name in group.linears:
        if name in choices.entries:
            moments = second_moments(xs, weights, choices.entries[name]["group_size"])
            weight = block.get_submodule(name).weight.data
            shrinks[name] = search_shrink(weight, moments, **choices.grid_arguments(name, dtype))
    return choices.with_shrinks(shrinks)
