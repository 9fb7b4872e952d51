"""Token weights that depend on the samples and the full-precision model alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..execution.group_inputs import GroupInputs
from .base import BlockWeights, Stateless, SubBlock


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
