"""MBQ token weights (arXiv 2412.19509): balances answers and pictures by their gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .base import BlockWeights
from .data import WeightingData


def mbq(data: WeightingData) -> BlockWeights:
    """Weighs answers 1, pictures by the mean gradient there over that at the answers, and other tokens 0.

    A block's ratio is at least the median over blocks.
    """
    gradients = data.gradients()
    ratios = []
    for b in range(len(data.blocks)):
        at_pictures = _mean(g[b][v] for g, v in zip(gradients, data.pictures) if g[b].numel())
        at_answers = _mean(g[b][a] for g, a in zip(gradients, data.answer_masks) if g[b].numel())
        ratios.append(at_pictures / at_answers if at_answers > 0 else 1.0)
    median = float(torch.tensor(ratios).median())
    masks = list(zip(data.pictures, data.answer_masks))
    return {
        block: {s: a.float() + max(ratio, median) * (v & ~a).float() for s, (v, a) in enumerate(masks)}
        for block, ratio in zip(data.blocks, ratios)
    }


def _mean(parts: Iterable[Tensor]) -> float:
    values = torch.cat([torch.empty(0), *(part.flatten() for part in parts)])
    return float(values.mean()) if len(values) else 0.0
