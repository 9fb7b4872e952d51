"""Gradient token weights: the size of the gradient of the answers' loss, clipped as QIG is."""

from __future__ import annotations

from .base import BlockWeights
from .data import WeightingData
from .integrated_gradients import weights_from_attribution


def gradient(data: WeightingData) -> BlockWeights:
    """Computes the weights of every block from the gradient at its output."""
    gradients = data.gradients()
    return {
        block: {
            s: weights_from_attribution(g[b].unsqueeze(-1), data.masks[s])
            for s, g in enumerate(gradients)
            if g[b].numel()
        }
        for b, block in enumerate(data.blocks)
    }
