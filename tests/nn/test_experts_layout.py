"""A stack of experts is known by its parameters; each expert's weight is a view of them."""

import pytest
import torch
from torch import Tensor, nn

from transformers_qaig.nn.experts_layout import experts_layout

E, H, M = 3, 8, 4


class Routed(nn.Module):
    """As Transformers stores most of them: gate and up are one parameter."""

    def __init__(self, down: tuple[int, ...] = (E, H, M)) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.arange(E * 2 * M * H, dtype=torch.float32).reshape(E, 2 * M, H))
        self.down_proj = nn.Parameter(torch.randn(down))
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return self.act_fn(gate) * up


def test_gate_and_up_are_views_of_one_parameter() -> None:
    module = Routed()
    layout = experts_layout(module)
    assert layout is not None
    assert (layout.num_experts, layout.hidden_size, layout.intermediate_size) == (E, H, M)
    assert layout.is_routed
    gate, up = (layout.weight(module, 1, name) for name in ("gate_proj", "up_proj"))
    assert torch.equal(torch.cat([gate, up]), module.gate_up_proj[1])
    gate.zero_()
    assert not module.gate_up_proj[1, :M].any()
    assert layout.shape("down_proj") == (H, M)
    assert layout.stacked_shapes() == {"gate_up_proj": (E, 2 * M, H), "down_proj": (E, H, M)}


def test_gate_and_up_are_joined_as_the_module_takes_them() -> None:
    layout = experts_layout(Routed())
    assert layout is not None
    gate, up = torch.ones(2, M), torch.zeros(2, M)
    assert torch.equal(layout.fuse(gate, up), torch.cat([gate, up], -1))


@pytest.mark.parametrize("module", [nn.Linear(2, 2), Routed(down=(E, H, M + 1)), Routed(down=(E - 1, H, M))])
def test_what_is_no_stack_has_no_layout(module: nn.Module) -> None:
    assert experts_layout(module) is None
