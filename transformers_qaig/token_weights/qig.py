"""QIG token weights (arXiv 2603.17809): how much of a sub-block's quantization error comes from each token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..execution.group_inputs import GroupInputs, run
from ..rounding.quant_grid import fake_quantize_tokens
from .base import Stateless, SubBlock
from .integrated_gradients import qig, qig_linear, weights_from_attribution


class QIG(Stateless):
    """Integrated gradients of f - f^q from the quantized model's input to the full-precision one.

    f^q has every linear of the sub-block rounded to nearest. Its inputs are rounded to 8 bits if activations are.

    Args:
        steps: of the integral, where it has no closed form.
        from_zero: whether the path starts at zero instead.
    """

    def __init__(self, steps: int, from_zero: bool = False):
        self.steps, self.from_zero = steps, from_zero

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        """Computes λ fp32 `[B, T]` on the CPU for each of the sub-block's inputs; zero at padding."""
        weights = sub_block.weights()
        weights_q = sub_block.rounded(weights)
        found = []
        for waiting in sub_block.inputs:
            inputs = waiting.loaded(sub_block.device)
            attribution = self._attribution(sub_block, inputs, weights, weights_q)
            rows = attribution.reshape(-1, attribution.shape[-1]).split(inputs.lengths)
            masks = inputs.mask.reshape(-1).split(inputs.lengths)
            by_sequence = [weights_from_attribution(values[None], mask[None])[0] for values, mask in zip(rows, masks)]
            found.append(torch.cat(by_sequence).reshape(inputs.mask.shape).cpu())
        return found

    def _attribution(
        self,
        sub_block: SubBlock,
        inputs: GroupInputs,
        weights: Mapping[str, Tensor],
        weights_q: Mapping[str, Tensor],
    ) -> Tensor:
        """Computes QIG fp32 `[B, T, C]`."""
        block, group, activation_bits = sub_block.block, sub_block.group, sub_block.activation_bits
        baseline = torch.zeros_like(inputs.hidden) if self.from_zero else inputs.hidden_q
        if activation_bits == 8 and not self.from_zero:
            baseline = fake_quantize_tokens(baseline)
        if group.linears == (group.module,) and group.module in weights and activation_bits != 8:
            return qig_linear(inputs.hidden, baseline, weights[group.module] - weights_q[group.module])

        def difference(x: Tensor) -> Tensor:
            rounded = run(block, group, inputs, x, weights_q, activation_bits)
            return run(block, group, inputs, x) - rounded

        return qig(difference, inputs.hidden, baseline, steps=self.steps)


class Shuffled(Stateless):
    """A control for [`QIG`]: its weights, shuffled among a sequence's real tokens.

    Args:
        inner: computes the weights.
        seed: of the shuffle, the same for every sub-block.
    """

    def __init__(self, inner: QIG, seed: int):
        self.inner, self.seed = inner, seed

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        """Computes the inner weights and shuffles them among real tokens."""
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for inputs, weights in zip(sub_block.inputs, self.inner.weigh(sub_block)):
            rows = weights.reshape(-1).split(inputs.lengths)
            for row, mask in zip(rows, inputs.mask.reshape(-1).split(inputs.lengths)):
                order = torch.randperm(int(mask.sum()), generator=generator)
                row[mask] = row[mask][order]
            found.append(weights)
        return found
