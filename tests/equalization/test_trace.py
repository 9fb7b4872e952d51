"""What a run of a block tells: which linears read one tensor, what ran and when; and the random twin that is run."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests import seeds
from transformers_qaig.equalization.trace import Trace, fresh, input_of, random_twin, record, restored, tensors

C = 8


class Block(nn.Module):
    """Linears a to d, a norm and a dropout; `run` is the forward pass."""

    def __init__(self, run: Callable[["Block", Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(C, C) for _ in range(4))
        self.norm, self.drop = nn.LayerNorm(C), nn.Dropout()
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


@torch.no_grad()
def trace(run: Callable[[Block, Tensor], object], x: Tensor | None = None) -> Trace:
    block = Block(run)
    found = record(block, lambda: block(torch.randn(2, 3, C) if x is None else x))
    assert not any(module._forward_pre_hooks for module in block.modules())
    return found


def groups(run: Callable[[Block, Tensor], object]) -> list[list[str]]:
    return [read.linears for read in trace(run).reads]


def test_linears_that_read_one_tensor_are_together_in_the_order_of_their_reads() -> None:
    assert groups(lambda m, x: m.d(m.a(x) + m.c(x) + m.b(x.detach()))) == [["a", "c", "b"], ["d"]]
    assert groups(lambda m, x: m.a(x) + m.b(m.norm(x)) + m.c(x)) == [["a", "c"], ["b"]]


def test_a_view_with_the_same_rows_is_the_same_tensor() -> None:
    assert groups(lambda m, x: m.a(x).flatten(0, 1) + m.b(x.flatten(0, 1))) == [["a", "b"]]


def test_other_values_at_the_same_place_are_another_tensor() -> None:
    assert groups(lambda m, x: m.a(x) + m.b(x[:, :2]).sum() + m.c(x[:1])) == [["a"], ["b"], ["c"]]
    square = torch.randn(C, C)
    found = trace(lambda m, x: m.a(x) + m.b(x.T), square)
    assert [read.linears for read in found.reads] == [["a"], ["b"]]

    def in_place(m: Block, x: Tensor) -> Tensor:
        return m.a(x) + m.b(x.mul_(2))

    assert groups(in_place) == [["a"], ["b"]]


def test_memory_that_is_used_again_is_another_tensor() -> None:
    def one_after_the_other(m: Block, x: Tensor) -> list[Tensor]:
        return [layer(x + number) for number, layer in enumerate((m.a, m.b, m.c, m.d))]

    found = trace(one_after_the_other, torch.randn(1024, C))  # 32 KB are given out again at once
    assert [read.linears for read in found.reads] == [["a"], ["b"], ["c"], ["d"]]


def test_a_read_keeps_the_values_of_its_moment() -> None:
    x = torch.ones(1, C)
    found = trace(lambda m, x: (m.a(x), x.zero_()), x)
    x.fill_(2)
    assert torch.equal(found.reads[0].x, torch.ones(1, C))
    assert torch.equal(found.output[1], torch.zeros(1, C))


def test_a_linear_that_runs_several_times_is_in_no_read() -> None:
    found = trace(lambda m, x: m.norm(m.norm(m.a(x) + m.b(x) + m.a(x) + m.c(m.a(x)))))
    assert found.repeated == {"a": 3}
    assert [read.linears for read in found.reads] == [["b"], ["c"]]


def test_what_ran_is_told_with_its_place_among_norms_and_linears() -> None:
    found = trace(lambda m, x: m.b(m.drop(m.norm(x))) + m.a(x))
    assert found.ran == {"", "norm", "drop", "b", "a"}
    assert found.first_run.keys() == {"norm", "b", "a"}
    assert found.first_run["norm"] < found.first_run["b"] < found.first_run["a"]
    assert [read.step for read in found.reads] == [found.first_run["b"], found.first_run["a"]]
    assert found.repeated == {}


def test_an_error_leaves_no_hook() -> None:
    block = Block(lambda m, x: m.a(x) / 0 if False else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(block, lambda: block(torch.ones(C)))
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_the_twin_is_random_in_fp32_and_alike_for_a_seed() -> None:
    block = Block(lambda m, x: m.a(m.norm(x))).bfloat16()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    one, two, other = (random_twin(block, seeds.generator(seed), torch.device("cpu")) for seed in (0, 0, 1))
    for name, parameter in one.named_parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
        assert torch.equal(parameter, two.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name))
        assert not torch.equal(parameter, before[name].float())
    assert 0.5 <= float(one.norm.weight.min()) <= float(one.norm.weight.max()) <= 1.5, "no gate is shut"
    assert not one.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_the_twin_has_no_hooks_and_no_forward_of_its_own_and_ties_stay() -> None:
    block = Block(lambda m, x: m.a(x))
    block.b.weight = block.a.weight
    block.register_buffer("mask", torch.tensor([0.0, -float("inf")], dtype=torch.float16))
    block.register_buffer("count", torch.tensor([3, 4]))
    block.a.register_forward_hook(lambda *args: 1 / 0)
    block.d.forward = partial(lambda x, waiting: 1 / 0, waiting=(number for number in ()))  # no copy of it
    twin = random_twin(block, seeds.generator(), torch.device("cpu"))
    twin(torch.ones(C))
    twin.d(torch.ones(C))
    assert twin.a.weight is twin.b.weight
    assert twin.mask.dtype == torch.float32
    assert torch.equal(twin.mask, block.mask.float())
    assert torch.equal(twin.count, block.count)
    twin.count += 1
    assert block.count.tolist() == [3, 4]
    assert "forward" in vars(block.d)
    assert len(block.a._forward_hooks) == 1


def test_the_input_of_a_linear_is_found_without_the_rest_of_the_pass() -> None:
    block = Block(lambda m, x: (m.a(x + 1), 1 / 0))
    x = torch.ones(2, C)
    found = input_of(block.a, lambda: block(x))
    assert found is not None
    assert torch.equal(found, x + 1)
    named = Block(lambda m, x: m.b(input=x + 2))
    assert torch.equal(input_of(named.b, lambda: named(x)), x + 2)  # type: ignore[arg-type]
    assert input_of(named.c, lambda: named(x)) is None


@torch.no_grad()
def test_parameters_are_restored_also_after_an_error() -> None:
    block = Block(lambda m, x: x)
    before = {name: parameter.clone() for name, parameter in block.named_parameters()}

    def change() -> None:
        with restored(block.a, block.norm):
            block.a.weight.zero_()
            block.norm.bias.fill_(float("nan"))
            raise KeyError

    with pytest.raises(KeyError):
        change()
    assert all(torch.equal(parameter, before[name]) for name, parameter in block.named_parameters())


def test_fresh_tensors_share_nothing_and_are_fp32() -> None:
    x, ids = torch.ones(3, dtype=torch.bfloat16), torch.arange(3)
    args, kwargs = fresh(((x, "text", None), {"again": [x], "ids": ids}))
    assert args[1:] == ("text", None)
    assert args[0].dtype == torch.float32
    assert args[0] is kwargs["again"][0], "what was one tensor stays one"
    args[0].zero_()
    kwargs["ids"].zero_()
    assert x.tolist() == [1, 1, 1]
    assert ids.tolist() == [0, 1, 2]


def test_tensors_are_listed_in_order() -> None:
    a, b, c, d = (torch.tensor(number) for number in range(4))
    assert [int(t) for t in tensors({"x": (a, [b, {"y": c}]), "n": None, "z": d, "s": "text"})] == [0, 1, 2, 3]
    assert tensors(None) == []
