import copy
import threading
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.equalization.blocks import (
    HEADS,
    KV,
    MLP,
    Attention,
    Branch,
    C,
    D,
    FusedAttention,
    FusedMLP,
    GatedMLP,
    I,
    Scale,
    X,
    attend,
)
from transformers_qaig.equalization import Group, find_groups


def probe(block: nn.Module, *args, **kwargs) -> dict[tuple[str, ...], Group]:
    return {group.linears: group for group in find_groups(block, args or (X,), kwargs)}


def producers(block: nn.Module, *args, **kwargs) -> dict[tuple[str, ...], str | None]:
    return {linears: group.producer for linears, group in probe(block, *args, **kwargs).items()}


def repeat_of_heads(first: int = 0) -> tuple[int, ...]:
    return tuple(first + head // (HEADS // KV) * D + d for head in range(HEADS) for d in range(D))


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


QKV = (HEADS * D, KV * D, KV * D)


@pytest.mark.parametrize(
    ("rows", "split", "channels"),
    [
        (sum(QKV), lambda y: y.split(QKV, -1), repeat_of_heads(first=sum(QKV[:2]))),
        (sum(QKV), lambda y: y.split(QKV[::-1], -1)[::-1], repeat_of_heads()),
        (3 * C, lambda y: y.chunk(3, -1), tuple(range(2 * C, 3 * C))),
        (  # [heads, (q, k, v), D]
            3 * C,
            lambda y: [t.flatten(-2) for t in y.unflatten(-1, (HEADS, 3, D)).unbind(-2)],
            tuple(head * 3 * D + 2 * D + d for head in range(HEADS) for d in range(D)),
        ),
        (  # [key-value heads, (q…, k, v), D]
            sum(QKV),
            lambda y: [t.flatten(-3) for t in y.unflatten(-1, (KV, 2 + HEADS // KV, D)).split([2, 1, 1], -2)],
            tuple(kv * 4 * D + 3 * D + d for kv in range(KV) for _ in range(HEADS // KV) for d in range(D)),
        ),
    ],
    ids=["q|k|v", "v|k|q", "equal thirds", "interleaved by head", "interleaved by key-value head"],
)
def test_fused_qkv(rows: int, split, channels: tuple[int, ...]):
    groups = probe(Branch(FusedAttention(rows, split)))
    assert groups[("f.fused",)].producer == "norm"
    assert groups[("f.d",)] == Group(("f.d",), "f.d", "f.fused", channels)


@pytest.mark.parametrize(
    ("split", "channels"),
    [
        (lambda y: y.chunk(2, -1), range(I, 2 * I)),
        (lambda y: y.chunk(2, -1)[::-1], range(I)),
        (lambda y: (y[..., ::2], y[..., 1::2]), range(1, 2 * I, 2)),
    ],
    ids=["gate|up", "up|gate", "alternating"],
)
def test_fused_gate_up(split, channels: range):
    assert probe(Branch(FusedMLP(split)))[("f.o",)] == Group(("f.o",), "f.o", "f.fused", tuple(channels))


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


def test_linear_that_runs_twice_is_in_no_group():
    class Twice(GatedMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.silu(self.g(x)) * self.u(x)) + self.g(x.flip(1))[..., :C]

    assert producers(Branch(Twice())) == {("f.u",): None, ("f.o",): "f.u"}


def test_linear_that_does_not_run_is_in_no_group():
    class Unused(GatedMLP):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(C, C)

    assert producers(Branch(Unused())) == {("f.g", "f.u"): "norm", ("f.o",): "f.u"}


def test_module_of_a_group_is_one_that_runs():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(C, C), nn.Linear(C, C)])

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.parts[0](x)) * self.parts[1](x)

    assert probe(Branch(Listed()))[("f.parts.0", "f.parts.1")].module == "f"


def test_block_and_call_are_left_as_they_were():
    block = Branch(GatedMLP()).to(torch.bfloat16).train()
    before = copy.deepcopy(block.state_dict())
    lock = threading.Lock()
    block.forward = partial(lambda held, x: pytest.fail("the wrapper ran"), lock)  # a lock cannot be copied
    block.f.g.register_forward_pre_hook(lambda *_: pytest.fail("a hook ran"))
    x = X.to(torch.bfloat16).requires_grad_()
    assert producers(block, x) == {("f.g", "f.u"): "norm", ("f.o",): "f.u"}
    assert block.training
    assert "forward" in vars(block)
    assert len(block.f.g._forward_pre_hooks) == 1
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert torch.equal(x, X.to(torch.bfloat16))


def test_inputs_changed_in_place_are_fresh_in_every_run():
    class InPlace(Branch):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2.0).add_(self.f(self.norm(x)))

    x = X.clone()
    assert producers(InPlace(GatedMLP()), x) == {("f.g", "f.u"): "norm", ("f.o",): "f.u"}
    assert torch.equal(x, X)


def test_works_on_meta_parameters_under_inference_mode_and_autocast():
    block = Branch(Attention()).to("meta")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        x = X + 0.0
        assert producers(block, x) == {("f.a", "f.b", "f.c"): "norm", ("f.d",): "f.c"}


def test_same_seed_same_groups_and_single_token():
    block = Branch(Attention())
    assert find_groups(block, (X,), {}, seed=3) == find_groups(block, (X,), {}, seed=3)
    assert producers(block, X[:, :1])[("f.d",)] == "f.c"
