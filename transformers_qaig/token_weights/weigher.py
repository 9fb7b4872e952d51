"""How much each token counts in a sub-block's searches: λ, as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.gradients import token_gradients
from ..attribution.qig import qig, qig_linear, tempered, token_importance
from ..calibration.decisions import BlockDecisions
from ..calibration.exclusions import Exclusions, Sample, overflow_advice
from ..calibration.group_inputs import GroupInputs, run
from ..calibration.steps import GroupContext
from ..execution.sequential_onload import moved, streaming
from ..nn.linear import get_linear
from ..recipes import Recipe
from ..rounding.quant_grid import fake_quantize_tokens
from ..utils.finite import is_finite
from ..utils.logging import get_logger, tqdm

logger = get_logger(__name__)

UNIFORM_CALLS = 5
"""The paper's code weighs its first five searches uniformly, by a counter that starts too low."""
AUTHORS_NODES = 32

Given = Sequence[Mapping[int, Tensor]]
"""Per block: sample → weights fp32 [B, T] that are known before the block is treated."""


class TokenWeigher:
    """
    Weighs the tokens of one group of linears after the other. One for a run: `authors` counts its calls.

    Args:
        recipe: whose `token_weights` it is.
        seed: of the shuffled control.
        given: from [`precomputed_weights`], where the recipe needs them.
    """

    def __init__(self, recipe: Recipe, seed: int = 0, given: Given | None = None):
        self.recipe, self.seed, self.given = recipe, seed, given
        self.block: int | None = 0
        """Which of the language model's blocks is being treated, if it is one."""
        self.calls = 0
        """Groups weighed so far that are searched for a scale."""

    def weigh(self, site: GroupContext, choices: BlockDecisions) -> None:
        """Set λ of every piece of `site`."""
        kind = self.recipe.token_weights
        self.calls += site.is_equalized
        authors = kind == "authors"
        if kind in ("balanced", "gradient", "mbq") or (
            authors and choices.activation_bits == 16 and self.calls <= UNIFORM_CALLS
        ):
            known = self.given[self.block] if self.given and self.block is not None else {}
            for piece in site.pieces:
                piece.weights = _spread(piece, known)
        elif kind == "uniform":
            for piece in site.pieces:
                piece.weights = piece.real.float()
        else:
            self._attribute(site, choices)
        if site.recipe.rounding != "nearest":  # for a second moment, not only for a choice among scales
            for piece in site.pieces:
                piece.weights = tempered(piece.weights)

    def _attribute(self, site: GroupContext, choices: BlockDecisions) -> None:
        """
        QIG. f^q has every linear of the sub-block rounded to nearest, from its weights as they are in `site.block`, and
        its inputs to 8 bits if activations are.
        """
        kind, group, authors = self.recipe.token_weights, site.group, self.recipe.token_weights == "authors"
        plain = BlockDecisions(choices.entries, choices.include_zero)
        prefix = f"{group.module}." if group.module else ""
        inside = [name for name in choices.entries if f"{name}.".startswith(prefix)]
        weights = {name: get_linear(site.block, name).weight for name in inside}
        weights_q = {name: plain.grid(name, weight, site.dtype).quantize(weight) for name, weight in weights.items()}
        generator = torch.Generator().manual_seed(self.seed)
        rounds_inputs = choices.activation_bits == 8
        from_zero = kind == "qig-zero" or (authors and not rounds_inputs)
        for waiting in site.pieces:
            piece = waiting.loaded(site.device)
            baseline = torch.zeros_like(piece.x) if from_zero else piece.x_q
            if rounds_inputs and not from_zero and not authors:
                baseline = fake_quantize_tokens(baseline)
            if group.linears == (group.module,) and not authors and not rounds_inputs:
                attribution = qig_linear(piece.x, baseline, weights[group.module] - weights_q[group.module])
            else:

                def difference(x: Tensor, piece: GroupInputs = piece) -> Tensor:
                    detached = x.detach() if authors and rounds_inputs else x
                    rounded = run(site.block, group, piece, detached, weights_q, choices.activation_bits)
                    return run(site.block, group, piece, x) - rounded

                nodes = AUTHORS_NODES if authors else site.recipe.ig_steps
                attribution = qig(difference, piece.x, baseline, nodes=nodes, both_ends=authors)
            real = torch.ones_like(piece.real) if authors else piece.real  # there padding counts
            rows = attribution.reshape(-1, attribution.shape[-1]).split(piece.lengths)
            importance = []
            for values, counts in zip(rows, real.reshape(-1).split(piece.lengths)):
                weight = token_importance(values[None], counts[None], clip=not (authors and rounds_inputs))[0]
                if authors:
                    # Each sample's sum is 1, however long it is; nothing where there is nothing to go by.
                    weight = weight / len(weight) * float(values.abs().sum() > 0)
                if kind == "shuffled":
                    order = torch.randperm(int(counts.sum()), generator=generator).to(weight.device)
                    weight[counts] = weight[counts][order]
                importance.append(weight)
            waiting.weights = torch.cat(importance).reshape(piece.real.shape).cpu()


def precomputed_weights(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    samples: Sequence[Sample],
    masks: Sequence[Tensor],
    answers: Sequence[Tensor],
    vision: Sequence[Tensor],
    recipe: Recipe,
    device: torch.device | str | None,
    exclusions: Exclusions,
) -> Given | None:
    """
    The token weights that follow from the samples and the full-precision model alone.

    `"balanced"`: a picture's tokens weigh as much as the others together. `"gradient"`: by the gradient of the answers'
    loss, clipped as QIG is. `"mbq"` (arXiv 2412.19509): 1 at the answers, at the pictures R = mean gradient there over
    that at the answers, at least its median over blocks; 0 elsewhere. `"authors"`: 1 at both, for its first searches.

    Args:
        model, blocks: in full precision.
        samples: model inputs.
        masks, answers, vision: bool [B, T] per sample: real tokens, the answers' and the pictures'.
        recipe: whose `token_weights` are meant.
        device: where to compute.
        exclusions: samples that are left out; those whose gradient is not finite are added.

    Returns:
        None for weights of another kind.
    """
    kind = recipe.token_weights
    if kind not in ("balanced", "gradient", "mbq", "authors") or not samples:
        return None
    if kind != "gradient" and not any(bool(v.any()) for v in vision):
        logger.warning("token_weights=%r: no token of the calibration set is known to be a picture's.", kind)
    if kind == "authors":
        return [{s: (v | a).float() for s, (v, a) in enumerate(zip(vision, answers))}] * len(blocks)
    if kind == "balanced":
        return [{s: _balanced(real, v) for s, (real, v) in enumerate(zip(masks, vision))}] * len(blocks)
    with streaming(model, blocks, device):
        gradients = []
        asked = tqdm(list(zip(samples, answers)), desc=f"Token gradients ({kind})", unit="sample")
        for sample, answer in asked:
            found = [] if sample in exclusions else token_gradients(model, blocks, moved(sample, device), answer)
            if not all(map(is_finite, found)):
                exclusions.add({sample.index: "the gradient of its answers' loss"}, overflow_advice(torch.float32))
                found = []
            gradients.append(found or [torch.empty(0)] * len(blocks))
    if kind == "gradient":
        return [
            {s: token_importance(g[b].unsqueeze(-1), masks[s]) for s, g in enumerate(gradients) if g[b].numel()}
            for b in range(len(blocks))
        ]
    ratios = []
    for b in range(len(blocks)):
        at_pictures = _mean(g[b][v] for g, v in zip(gradients, vision) if g[b].numel())
        at_answers = _mean(g[b][a] for g, a in zip(gradients, answers) if g[b].numel())
        ratios.append(at_pictures / at_answers if at_answers > 0 else 1.0)
    median = float(torch.tensor(ratios).median())
    return [
        {s: a.float() + max(ratio, median) * (v & ~a).float() for s, (v, a) in enumerate(zip(vision, answers))}
        for ratio in ratios
    ]


def _balanced(real: Tensor, vision: Tensor) -> Tensor:
    """Mean 1 over real tokens, half of it at the picture's."""
    picture, other = real & vision, real & ~vision
    if not picture.any() or not other.any():
        return real.float()
    half = real.sum() / 2
    return picture * (half / picture.sum()) + other * (half / other.sum())


def _mean(parts: Any) -> float:
    values = torch.cat([torch.empty(0), *(part.flatten() for part in parts)])
    return float(values.mean()) if len(values) else 0.0


def _spread(piece: GroupInputs, known: Mapping[int, Tensor]) -> Tensor:
    """Weights known by sample as λ of a piece; uniform where a sample's do not fit its tokens here."""
    rows = []
    per_sample = len(piece.lengths) // len(piece.samples)
    reals = piece.real.reshape(-1).split(piece.lengths)
    for index, sample in enumerate(piece.samples):
        real = torch.cat(reals[index * per_sample : (index + 1) * per_sample])
        weight = known.get(sample)
        rows.append(real.float() if weight is None or weight.numel() != len(real) else weight.cpu().reshape(-1) * real)
    return torch.cat(rows).reshape(piece.real.shape)
