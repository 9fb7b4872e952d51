"""Token weights that depend on the samples and the full-precision model alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..execution.group_inputs import GroupInputs
from .base import BlockWeights, Stateless, SubBlock
from .data import WeightingData


class Precomputed(Stateless):
    """Weights that are known by block and sample; uniform where they are not.

    Args:
        known: see [`BlockWeights`]; empty if nothing was computed.
    """

    def __init__(self, known: BlockWeights | None = None):
        self.known = known or {}

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        """Looks up λ fp32 `[B, T]` for each of the sub-block's inputs; uniform where nothing was computed."""
        by_sample = self.known.get(sub_block.owner, {})
        return [weights_at_rows(inputs, by_sample) for inputs in sub_block.inputs]


def weights_at_rows(inputs: GroupInputs, by_sample: Mapping[int, Tensor]) -> Tensor:
    """Returns weights by sample as λ of some inputs; uniform where a sample's do not fit its tokens here."""
    if not inputs.samples:
        return inputs.mask.float()
    rows = []
    per_sample = len(inputs.lengths) // len(inputs.samples)
    masks = inputs.mask.reshape(-1).split(inputs.lengths)
    for index, sample in enumerate(inputs.samples):
        mask = torch.cat(masks[index * per_sample : (index + 1) * per_sample])
        weights, tokens = by_sample.get(sample), inputs.tokens[index] if inputs.tokens else None
        if weights is not None and tokens is not None:
            weights = weights.reshape(-1)[tokens.to(weights.device)]
        fits = weights is not None and weights.numel() == len(mask)
        rows.append(weights.to(mask.device).reshape(-1) * mask if weights is not None and fits else mask.float())
    return torch.cat(rows).reshape(inputs.mask.shape)


def text_alone(data: WeightingData) -> BlockWeights:
    """Returns the same weights for every block: 1 at real tokens that are no picture's. Samples of one kind have none.

    A picture's tokens are most of a sample, and answers read few of them. What lowers the error over all tokens was
    found to raise the answers' error on the tiny VLM.
    """
    pairs = enumerate(zip(data.masks, data.pictures))
    by_sample = {s: (mask & ~picture).float() for s, (mask, picture) in pairs if _has_both(mask, picture)}
    return dict.fromkeys(data.blocks, by_sample)


def _has_both(mask: Tensor, picture: Tensor) -> bool:
    """Whether a sample has tokens of a picture and others."""
    return bool((mask & picture).any()) and bool((mask & ~picture).any())
