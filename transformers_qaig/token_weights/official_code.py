"""The token weights of the paper's script, which differs from the paper: for reproduction (recipe "authors").

Compared with [`QIG`](qig.py):

- the first five searches of a run are uniform over pictures and answers, by a counter that starts too low;
- all scales of a block are searched before anything in it is rounded;
- weights alone: the path starts at zero; with rounded inputs: at the quantized model's input, which is not rounded;
- with rounded inputs the quantized output counts as a constant, and outliers are not clipped;
- the integral has 32 points, both ends among them, and no closed form is used;
- padding counts;
- a sequence's weights sum up to 1, however long it is; they are 0 where all attributions are zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..execution.group_inputs import GroupInputs, run
from .base import BlockWeights, SubBlock
from .data import WeightingData
from .integrated_gradients import qig, weights_from_attribution
from .precomputed import Precomputed

UNIFORM_SEARCHES = 5
STEPS = 32


def pictures_and_answers(data: WeightingData) -> BlockWeights:
    """Weighs the pictures' and the answers' tokens 1, for the first searches."""
    by_sample = {s: (v | a).float() for s, (v, a) in enumerate(zip(data.pictures, data.answer_masks))}
    return dict.fromkeys(data.blocks, by_sample)


class OfficialCode:
    """QIG as in the paper's script.

    Args:
        first: the weights of the first searches, see [`pictures_and_answers`].
    """

    sees_earlier_rounding = False
    counts_padding = True

    def __init__(self, first: BlockWeights | None = None):
        self.first = Precomputed(first)
        self.searches = 0
        """Groups that were searched for a scale so far."""

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        """Computes λ fp32 `[B, T]` on the CPU for each of the sub-block's inputs."""
        self.searches += sub_block.is_searched
        if sub_block.activation_bits == 16 and self.searches <= UNIFORM_SEARCHES:
            return self.first.weigh(sub_block)
        weights_q = sub_block.rounded(sub_block.weights())
        return [self._weights(sub_block, inputs.loaded(sub_block.device), weights_q) for inputs in sub_block.inputs]

    def state(self) -> dict[str, int]:
        """Returns the number of searches so far."""
        return {"searches": self.searches}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continues the count of searches from `state`."""
        self.searches = state["searches"]

    def _weights(self, sub_block: SubBlock, inputs: GroupInputs, weights_q: Mapping[str, Tensor]) -> Tensor:
        block, group, activation_bits = sub_block.block, sub_block.group, sub_block.activation_bits
        rounds_inputs = activation_bits == 8

        def difference(x: Tensor) -> Tensor:
            detached = x.detach() if rounds_inputs else x
            rounded = run(block, group, inputs, detached, weights_q, activation_bits)
            return run(block, group, inputs, x) - rounded

        baseline = inputs.hidden_q if rounds_inputs else torch.zeros_like(inputs.hidden)
        attribution = qig(difference, inputs.hidden, baseline, steps=STEPS, both_ends=True)
        found = []
        for values in attribution.reshape(-1, attribution.shape[-1]).split(inputs.lengths):
            all_tokens = torch.ones(len(values), dtype=torch.bool, device=values.device)
            weights = weights_from_attribution(values[None], all_tokens[None], clip=not rounds_inputs)[0]
            found.append(weights / len(weights) * float(values.abs().sum() > 0))
        return torch.cat(found).reshape(inputs.mask.shape).cpu()
