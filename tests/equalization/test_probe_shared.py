"""Tensors that are used elsewhere, copied or changed: what the probe must not take for a producer."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.equalization.blocks import Attention, Branch, C, GatedMLP, Scale, X, attend
from tests.equalization.probing import probe, producers


class Parallel(nn.Module):
    """Attention and MLP read one norm; the norm's output may be used once more."""

    def __init__(self, leak=None):
        super().__init__()
        self.norm, self.attention, self.mlp, self.leak = Scale(), Attention(), GatedMLP(), leak

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = x + self.attention(y) + self.mlp(y.view(-1, C)).view_as(x)
        return z if self.leak is None else self.leak(z, y)


def test_parallel_branches_are_one_group():
    first, *_ = probe(Parallel()).values()
    assert first.linears == ("attention.a", "attention.b", "attention.c", "mlp.g", "mlp.u")
    assert (first.module, first.producer) == ("", "norm")


@pytest.mark.parametrize(
    "leak",
    [
        lambda z, y: z + y,
        lambda z, y: z * torch.sigmoid(y @ torch.arange(C).float()[:, None] / C),  # a router that is no nn.Linear
        lambda z, y: (z, y),
    ],
    ids=["residual", "router", "returned"],
)
def test_norm_used_elsewhere_is_rejected(leak):
    found = producers(Parallel(leak))
    assert found[("attention.a", "attention.b", "attention.c", "mlp.g", "mlp.u")] is None
    assert found[("attention.d",)] == "attention.c", "the other groups are not affected"


def test_linear_used_elsewhere_is_rejected():
    class Leaky(GatedMLP):
        def forward(self, x: Tensor) -> Tensor:
            up = self.u(x)
            return self.o(F.silu(self.g(x)) * up) + up[..., :C]

    assert producers(Branch(Leaky()))[("f.o",)] is None


def test_values_left_for_later_blocks_are_used_elsewhere():
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.f = Scale(), Attention()

        def forward(self, x: Tensor, shared: dict[str, Tensor]) -> Tensor:
            y = self.norm(x)
            shared["values"] = self.f.c(y)
            return x + self.f.d(attend(self.f.a(y), self.f.b(y), shared["values"]))

    shared: dict[str, Tensor] = {}
    assert producers(Sharing(), X, shared=shared) == {("f.c", "f.a", "f.b"): "norm", ("f.d",): None}
    assert not shared


def test_copy_of_a_tensor_is_another_tensor():
    class Copies(GatedMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.silu(self.g(x)) * self.u(x.clone()))

    assert producers(Branch(Copies())) == {("f.g",): None, ("f.u",): None, ("f.o",): "f.u"}


def test_tensor_changed_in_place_is_another_tensor():
    class InPlace(GatedMLP):
        def forward(self, x: Tensor) -> Tensor:
            gate = self.g(x)
            return self.o(F.silu(gate) * self.u(x.add_(1.0)))

    assert list(probe(Branch(InPlace()))) == [("f.g",), ("f.u",), ("f.o",)]


def test_linear_that_runs_twice_is_a_group_of_its_own():
    class Twice(GatedMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.silu(self.g(x)) * self.u(x)) + self.g(x.flip(1))[..., :C]

    groups = probe(Branch(Twice()))
    assert producers(Branch(Twice())) == {("f.u",): None, ("f.o",): "f.u", ("f.g",): None}
    assert {group.linears: group.runs for group in groups.values()} == {("f.u",): 1, ("f.o",): 1, ("f.g",): 2}


def test_linear_that_does_not_run_is_in_no_group():
    class Unused(GatedMLP):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(C, C)

    assert producers(Branch(Unused())) == {("f.g", "f.u"): "norm", ("f.o",): "f.u"}
