"""The groups and producers of ordinary blocks: attention, MLPs and their norms."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.equalization.blocks import HEADS, MLP, Attention, Branch, C, D, GatedMLP, I, Scale, X, attend
from tests.equalization.probing import probe, producers, repeat_of_heads
from transformers_qaig.equalization import Group


def test_grouped_query_attention():
    groups = probe(Branch(Attention()))
    assert list(groups) == [("f.a", "f.b", "f.c"), ("f.d",)]
    inner, outer = groups.values()
    assert inner == Group(("f.a", "f.b", "f.c"), "f", "norm", tuple(range(C)))
    assert outer == Group(("f.d",), "f.d", "f.c", repeat_of_heads())


def test_gated_mlp():
    first, second = probe(Branch(GatedMLP())).values()
    assert first == Group(("f.g", "f.u"), "f", "norm", tuple(range(C)))
    assert second == Group(("f.o",), "f.o", "f.u", tuple(range(I)))


def test_norm_that_multiplies_by_one_plus_weight():
    group = probe(Branch(GatedMLP(), Scale(offset=1.0)))[("f.g", "f.u")]
    assert (group.producer, group.plus_one) == ("norm", True)


def test_layer_norm_with_bias():
    assert probe(Branch(GatedMLP(), nn.LayerNorm(C)))[("f.g", "f.u")].producer == "norm"


@pytest.mark.parametrize(
    ("activation", "absorbs"),
    [(F.gelu, False), (F.silu, False), (F.relu, True), (lambda x: F.relu(x).square(), False), (torch.tanh, False)],
    ids=["gelu", "silu", "relu", "relu squared", "tanh"],
)
def test_activation_between_two_linears(activation, absorbs: bool):
    group = probe(Branch(MLP(activation)))[("f.o",)]
    assert group.producer == ("f.i" if absorbs else None)
    assert group.channels == (tuple(range(I)) if absorbs else (-1,) * I)


def test_cross_attention_reads_two_tensors():
    class Cross(Attention):
        def forward(self, x: Tensor, states: Tensor) -> Tensor:
            return self.d(attend(self.a(x), self.b(states), self.c(states)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.f = Scale(), Cross()

        def forward(self, x: Tensor, others: dict[str, tuple[Tensor, None]]) -> tuple[Tensor, None]:
            return x + self.f(self.norm(x), others["states"][0]), None

    states = torch.randn(1, 13, C)
    found = producers(Block(), X, others={"states": (states, None)})
    assert found == {("f.a",): "norm", ("f.b", "f.c"): None, ("f.d",): "f.c"}


def test_norms_per_head_are_not_mistaken_for_producers():
    class QKNorm(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.nq, self.nk = Scale(D), Scale(D)

        def forward(self, x: Tensor) -> Tensor:
            q, k = self.a(x).unflatten(-1, (-1, D)), self.b(x).unflatten(-1, (-1, D))
            return self.d(attend(self.nq(q).flatten(-2), self.nk(k).flatten(-2), self.c(x)))

    assert producers(Branch(QKNorm())) == {("f.a", "f.b", "f.c"): "norm", ("f.d",): "f.c"}


def test_norm_per_head_can_be_a_producer():
    class SubNorm(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.n = Scale(D)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.n(attend(self.a(x), self.b(x), self.c(x)).unflatten(-1, (-1, D))).flatten(-2))

    group = probe(Branch(SubNorm()))[("f.d",)]
    assert (group.producer, group.channels) == ("f.n", tuple(range(D)) * HEADS)


def test_columns_from_elsewhere_stay_free_of_scale():
    class Joint(Attention):
        """One output projection for attention and a GELU MLP."""

        def __init__(self) -> None:
            super().__init__()
            self.i, self.d = nn.Linear(C, C), nn.Linear(2 * C, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(torch.cat([F.gelu(self.i(x)), attend(self.a(x), self.b(x), self.c(x))], -1))

    group = probe(Branch(Joint()))[("f.d",)]
    assert (group.producer, group.channels) == ("f.c", (-1,) * C + repeat_of_heads())


def test_groups_behind_a_zero_gate_are_found():
    class Gated(Branch):
        def __init__(self) -> None:
            super().__init__(GatedMLP())
            self.gate = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gate.tanh() * self.f(self.norm(x))

    assert producers(Gated()) == {("f.g", "f.u"): "norm", ("f.o",): "f.u"}


def test_a_branch_that_this_call_masks_out_proves_nothing():
    class Masked(Branch):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x + mask * self.f(self.norm(x))

    block = Masked(GatedMLP())
    assert producers(block, X, mask=torch.zeros(1, 13, 1)) == {("f.g", "f.u"): None, ("f.o",): None}
    assert producers(block, X, mask=torch.ones(1, 13, 1)) == {("f.g", "f.u"): "norm", ("f.o",): "f.u"}


def test_dead_channels_follow_their_neighbours():
    class Dying(MLP):
        def __init__(self) -> None:
            super().__init__(F.relu)
            self.register_buffer("alive", torch.ones(I))
            self.alive[[0, 5, 6, I - 1]] = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.relu(self.i(x)) * self.alive)

    assert probe(Branch(Dying()))[("f.o",)].channels == tuple(range(I))


def test_module_of_a_group_is_one_that_runs():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(C, C), nn.Linear(C, C)])

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.parts[0](x)) * self.parts[1](x)

    assert probe(Branch(Listed()))[("f.parts.0", "f.parts.1")].module == "f"
