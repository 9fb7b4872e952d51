"""`EmptyStack`: a stack of experts in the shapes of vLLM's layer, which packed experts take the place of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class EmptyStack(nn.Module):
    """A stack on the meta device, as Transformers' classes store one. It is never run.

    Args:
        num_experts: E.
        hidden_size: H.
        intermediate_size: I.
        gated: whether each expert has a gate.
        activation: of the gate, or of what goes up where there is none.
        dtype: of the weights.
    """

    is_transposed = False

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        gated: bool,
        activation: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
    ):
        super().__init__()
        first = "gate_up_proj" if gated else "up_proj"
        shapes = {
            first: (num_experts, intermediate_size * (1 + gated), hidden_size),
            "down_proj": (num_experts, hidden_size, intermediate_size),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")))
        self.act_fn = activation

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Says by its arguments that a token goes to the chosen experts."""
        raise NotImplementedError
