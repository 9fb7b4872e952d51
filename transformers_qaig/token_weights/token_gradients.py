"""Computes the gradient of the answers' loss at every token, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


def token_gradients(
    model: nn.Module, blocks: Sequence[nn.Module], sample: Mapping[str, Any], answer: Tensor
) -> list[Tensor]:
    """Computes the mean over channels of |∂L/∂h| at every token of every block's output h.

    L is the negative log likelihood of the answers. The gradient at h is also the gradient at the output of whatever a
    block adds to its residual stream last.

    Args:
        model: with logits; its parameters need no gradients.
        blocks: run one after the other.
        sample: the model's inputs.
        answer: bool [B, T], True at the answers' tokens; the first position is False.

    Returns:
        fp32 [B, T] per block, on the CPU; empty where a block did not run.
    """
    states: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            leaves, structure = tree_flatten(output)
            position = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
            if not leaves[position].requires_grad:
                leaves[position] = leaves[position].detach().requires_grad_()
            states[index] = leaves[position]
            return tree_unflatten(leaves, structure)

        return hook

    handles = [block.register_forward_hook(keep(index)) for index, block in enumerate(blocks)]
    try:
        with torch.enable_grad():
            logits = model(**sample, use_cache=False).logits
            log_p = logits[:, :-1].float().log_softmax(-1)
            ids = sample.get("decoder_input_ids", sample.get("input_ids"))
            target = ids[:, 1:].to(log_p.device).unsqueeze(-1)
            loss = -(log_p.gather(-1, target).squeeze(-1) * answer[:, 1:].to(log_p.device)).sum()
            found = torch.autograd.grad(loss, list(states.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    gradients = [torch.empty(0)] * len(blocks)
    for index, gradient in zip(states, found):
        if gradient is not None:
            gradients[index] = gradient.float().abs().mean(-1).cpu()
    return gradients
