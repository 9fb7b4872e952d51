import copy

import pytest
import torch
from torch import Tensor, nn

from tests.families import FAMILIES, build, samples
from tests.tolerance import assert_close, terms_of
from transformers_qaig.equalization import Group, find_groups, fold, tie

PAIR = Group(linears=("b", "c"), module="", producer="a", channels=(2, 3, 2, 3, -1))


def random_scale(group: Group) -> Tensor:
    """A valid E in [1/4, 4]."""
    return tie(4 ** (torch.rand(len(group.channels)) * 2 - 1), group)


class Pair(nn.Module):
    """`b` and `c` read rows 2 and 3 of `a` twice over, and one column of the input."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(5, 2), nn.Linear(5, 6)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)[..., 2:]
        y = torch.cat([y, y, x[..., :1]], -1)
        return torch.cat([self.b(y), self.c(y)], -1)


class Normed(nn.Module):
    def __init__(self, norm: nn.Module):
        super().__init__()
        self.a, self.b = norm, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_fold_into_rows_of_a_linear_keeps_the_function():
    block, x = Pair(), torch.randn(7, 3)
    before, expected = copy.deepcopy(block), block(x)
    scale = torch.tensor([0.5, 3.0, 0.5, 3.0, 1.0])
    fold(block, PAIR, scale)
    assert_close(block(x), expected, terms_of(block))
    torch.testing.assert_close(block.b.weight, before.b.weight * scale)
    torch.testing.assert_close(block.c.weight, before.c.weight * scale)
    torch.testing.assert_close(block.a.bias, before.a.bias / torch.tensor([1.0, 1.0, 0.5, 3.0]))
    assert torch.equal(block.a.weight[:2], before.a.weight[:2]), "rows that no column comes from stay"


def test_fold_into_layer_norm_divides_weight_and_bias():
    block, x = Normed(nn.LayerNorm(4)), torch.randn(7, 4)
    nn.init.normal_(block.a.weight)
    nn.init.normal_(block.a.bias)
    expected = block(x)
    scale = torch.tensor([0.5, 3.0, 0.25, 1.0])
    fold(block, Group(("b",), "b", "a", (0, 1, 2, 3)), scale)
    assert_close(block(x), expected, terms_of(block))


def test_fold_into_norm_of_one_plus_weight():
    class PlusOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * (1 + self.weight)

    block, x = Normed(PlusOne()), torch.randn(7, 4)
    expected, weight = block(x), block.a.weight.detach().clone()
    scale = torch.tensor([0.5, 3.0, 0.25, 1.0])
    fold(block, Group(("b",), "b", "a", (0, 1, 2, 3), plus_one=True), scale)
    assert_close(block(x), expected, terms_of(block))
    torch.testing.assert_close(block.a.weight, (1 + weight) / scale - 1)


def test_arithmetic_is_fp32_whatever_the_dtype():
    block = Pair(torch.bfloat16)
    before = copy.deepcopy(block)
    scale = random_scale(PAIR)
    fold(block, PAIR, scale)
    assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
    assert torch.equal(block.b.weight, (before.b.weight.float() * scale).bfloat16())
    assert torch.equal(block.a.weight[2:], (before.a.weight[2:].float() / scale[:2, None]).bfloat16())


def test_skipped_modules_stay():
    block = Pair()
    before = copy.deepcopy(block)
    scale = random_scale(PAIR)
    fold(block, PAIR, scale, skip=("b", "a"))
    assert torch.equal(block.b.weight, before.b.weight)
    assert torch.equal(block.a.weight, before.a.weight)
    assert torch.equal(block.c.weight, before.c.weight * scale)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ([1.0, 1.0, 1.0, 1.0], "must have shape"),
        ([0.0, 1.0, 0.0, 1.0, 1.0], "positive and finite"),
        ([-1.0, 1.0, -1.0, 1.0, 1.0], "positive and finite"),
        ([float("inf"), 1.0, float("inf"), 1.0, 1.0], "positive and finite"),
        ([float("nan"), 1.0, 1.0, 1.0, 1.0], "positive and finite"),
        ([2.0, 1.0, 3.0, 1.0, 1.0], "one channel of a"),
        ([1.0, 1.0, 1.0, 1.0, 2.0], "columns that a does not produce"),
    ],
)
def test_scale_that_cannot_be_folded_is_refused_and_nothing_changes(scale: list[float], message: str):
    block = Pair()
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(ValueError, match=message):
        fold(block, PAIR, torch.tensor(scale))
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_group_without_producer_takes_no_scale():
    group = Group(("b",), "b", None, (-1,) * 5)
    block = Pair()
    before = copy.deepcopy(block.state_dict())
    fold(block, group, torch.ones(5))
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    with pytest.raises(ValueError, match="has no producer"):
        fold(block, group, torch.full((5,), 2.0))


def test_tie_averages_over_columns_of_one_channel():
    tied = tie(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), PAIR)
    assert tied.tolist() == [2.0, 3.0, 2.0, 3.0, 1.0]
    assert tie(torch.rand(5), Group(("b",), "b", None, (-1,) * 5)).tolist() == [1.0] * 5
    with pytest.raises(ValueError, match=r"shape \[5\]"):
        tie(torch.ones(4), PAIR)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_stay_when_every_group_of_every_block_is_folded(name: str):
    model, processor = build(name)
    seen, unseen = samples(processor, 2)
    blocks = list(model.get_decoder().layers)
    calls = captured_calls(model, blocks, seen)
    expected = model(**unseen, use_cache=False).logits

    def change(other: nn.Module) -> float:
        logits = other(**unseen, use_cache=False).logits
        return float((logits - expected).abs().max() / expected.abs().max())

    # A recurrence can amplify rounding beyond 1e-5: no fold is better than the last bit of its weights.
    limit = max(1e-5, 3 * max(change(with_last_bits_changed(model)) for _ in range(2)))
    for i, block in enumerate(blocks):
        before = copy.deepcopy(block.state_dict())
        groups = find_groups(block, *calls[i], seed=i)
        assert sum(group.producer is not None for group in groups) >= 2
        for group in groups:
            fold(block, group, random_scale(group))
        assert any(not torch.allclose(value, before[key]) for key, value in block.state_dict().items())
    assert change(model) <= limit


def with_last_bits_changed(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for p in model.parameters():
        p.mul_(1 + torch.finfo(p.dtype).eps / 2 * torch.randn_like(p))
    return model


def captured_calls(model: nn.Module, blocks: list[nn.Module], sample: dict[str, Tensor]) -> list[tuple[tuple, dict]]:
    """(args, kwargs) of each block in a forward pass of the model."""
    calls: list[tuple[tuple, dict]] = []
    handles = [
        block.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for block in blocks
    ]
    model(**sample, use_cache=False)
    for handle in handles:
        handle.remove()
    return calls
