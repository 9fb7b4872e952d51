"""Experts that every token goes to: found by trying the forward, and packed."""

import pytest
import torch
from torch import Tensor, nn

from tests.nn.test_experts import packed_linears
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig.nn.experts_layout import experts_layout
from transformers_qaig.nn.experts_module import LinearExperts


class Shared(nn.Module):
    """As Inkling's: three 3-D parameters, and a weight for each token and expert."""

    def __init__(self, experts: int, hidden: int, inner: int, transposed: bool = False):
        super().__init__()
        for name, rows, columns in (
            ("gate_proj", inner, hidden),
            ("up_proj", inner, hidden),
            ("down_proj", hidden, inner),
        ):
            shape = (columns, rows) if transposed else (rows, columns)
            self.register_parameter(name, nn.Parameter(torch.randn(experts, *shape) / columns**0.5))
        self.act_fn, self.transposed = nn.SiLU(), transposed

    def forward(self, hidden_states: Tensor, gammas: Tensor) -> Tensor:
        weights = [self.gate_proj, self.up_proj, self.down_proj]
        gate, up, down = (w if self.transposed else w.transpose(1, 2) for w in weights)
        x = hidden_states.reshape(1, -1, hidden_states.shape[-1]).expand(len(gate), -1, -1)
        inner = self.act_fn(x @ gate) * (x @ up) * gammas.reshape(-1, len(gate), 1).transpose(0, 1)
        return (inner @ down).sum(0).view(hidden_states.shape)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_layout_is_the_one_that_the_forward_takes(transposed: bool) -> None:
    layout = experts_layout(Shared(2, 64, 96, transposed))
    assert layout is not None
    assert layout.is_shared
    assert (layout.num_experts, layout.hidden_size, layout.intermediate_size) == (2, 64, 96)
    assert layout.transposed is transposed


def test_no_layout_is_guessed_where_both_would_fit() -> None:
    assert experts_layout(Shared(2, 64, 64)) is None


@torch.no_grad()
@pytest.mark.parametrize("transposed", [False, True])
def test_linears_and_packed_experts_compute_what_the_class_does(transposed: bool) -> None:
    torch.manual_seed(0)
    shared = Shared(2, 64, 96, transposed)
    hidden, gammas = torch.randn(2, 5, 64), torch.rand(2, 5, 2)
    linears = LinearExperts.of(shared)
    torch.testing.assert_close(linears(hidden, gammas=gammas), shared(hidden, gammas), rtol=1e-4, atol=1e-5)
    linears = packed_linears(shared)
    packed = QAIGExperts.from_linears(linears)
    torch.testing.assert_close(packed(hidden, gammas), linears(hidden, gammas), rtol=1e-4, atol=1e-4)
    dense = packed.to_dense()
    torch.testing.assert_close(dense(hidden, gammas), packed(hidden, gammas), rtol=1e-4, atol=1e-4)
