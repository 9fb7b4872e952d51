"""How much each token of a sub-block's input counts in its searches: λ, as the recipe says."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attribution.tokens import qig, qig_linear, token_importance
from ..nn.linear import get_linear
from .choices import Choices
from .stages import Site
from .subblock import Piece, run


def weigh_tokens(site: Site, choices: Choices, seed: int) -> None:
    """
    Set λ of every piece: uniform over real tokens, or QIG, from the quantized stream's input or from zero.

    f^q has every linear of the sub-block rounded to nearest, from its weights as they are in `site.block`.
    """
    group, kind = site.group, site.recipe.token_weights
    if kind == "uniform":
        for piece in site.pieces:
            piece.weights = piece.real.float()
        return
    plain = Choices(choices.entries, choices.include_zero)
    prefix = f"{group.module}." if group.module else ""
    inside = [name for name in choices.entries if f"{name}.".startswith(prefix)]
    weights = {name: get_linear(site.block, name).weight for name in inside}
    weights_q = {name: plain.grid(name, weight, site.dtype).quantize(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    for waiting in site.pieces:
        piece = waiting.loaded(site.device)
        baseline = torch.zeros_like(piece.x) if kind == "qig-zero" else piece.x_q
        if group.linears == (group.module,):
            attribution = qig_linear(piece.x, baseline, weights[group.module] - weights_q[group.module])
        else:

            def difference(x: Tensor, piece: Piece = piece) -> Tensor:
                return run(site.block, group, piece, x) - run(site.block, group, piece, x, weights_q)

            attribution = qig(difference, piece.x, baseline, nodes=site.recipe.nodes)
        rows = attribution.reshape(-1, attribution.shape[-1]).split(piece.lengths)
        importance = []
        for values, real in zip(rows, piece.real.reshape(-1).split(piece.lengths)):
            weight = token_importance(values[None], real[None])[0]
            if kind == "shuffled":
                weight[real] = weight[real][torch.randperm(int(real.sum()), generator=generator).to(weight.device)]
            importance.append(weight)
        waiting.weights = torch.cat(importance).reshape(piece.real.shape).cpu()
