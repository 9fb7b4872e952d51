"""The kernels of `experts_route` and `experts_sum` against plain torch, to the bit, and with indices of every kind."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.nn.test_experts import experts, inputs_of, packed_linears
from transformers_qaig.kernels import extension
from transformers_qaig.nn import experts_routing
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig.nn.experts_routing import experts_route_reference, experts_sum_reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
needs_kernels = pytest.mark.skipif(not extension.load(), reason=f"no compiled kernels: {extension.why_not()}")


def check(hidden: Tensor, index: Tensor, weights: Tensor, count: int, choices: int) -> None:
    """Both kernels compute what plain torch does."""
    found = torch.ops.qaig.experts_route(hidden, index, count, choices)
    for ours, theirs in zip(found, experts_route_reference(hidden, index, count, choices), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    rows = torch.randn_like(found[0]) * 3
    ours, theirs = (run(rows, weights, found[2]) for run in (torch.ops.qaig.experts_sum, experts_sum_reference))
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@needs_kernels
@pytest.mark.parametrize(("dtype", "weights"), itertools.product(FLOATS, FLOATS))
def test_kernels_equal_plain_torch(dtype: torch.dtype, weights: torch.dtype) -> None:
    for tokens, routed, channels, ids in itertools.product(
        (0, 1, 3, 40), (1, 2, 8, 16), (64, 1344), (torch.int32, torch.int64)
    ):
        index = torch.randint(0, 15, (tokens, routed), dtype=ids)
        check(torch.randn(tokens, channels).to(dtype), index, torch.rand(tokens, routed).to(weights), 10, 14)


@needs_kernels
def test_many_tokens_in_several_threads() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            check(torch.randn(700, 512), torch.randint(0, 9, (700, 4)), torch.rand(700, 4), 8, 8)
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize(
    "index",
    [[[4, 4], [4, 4]], [[1, 1], [1, 1]], [[3, 0], [0, 3]], [[0, 4], [2, 2]], [[], []]],
    ids=["to none", "all to one", "crosswise", "one to none, one repeated", "no expert a token"],
)
def test_how_tokens_are_routed(index: list[list[int]]) -> None:
    chosen = torch.tensor(index, dtype=torch.int64).reshape(2, -1)
    weights = torch.rand(chosen.shape)
    check(torch.randn(2, 64), chosen, weights, 4, 4)
    if weights.numel():
        weights[0, 0], weights[1, 1] = torch.nan, torch.inf
        check(torch.randn(2, 64).bfloat16(), chosen, weights.bfloat16(), 4, 4)


@needs_kernels
def test_strided_arguments() -> None:
    hidden, index = torch.randn(64, 10).t()[::2], torch.randint(0, 5, (2, 5)).t()
    check(hidden, index, torch.rand(2, 5).t(), 4, 4)
    rows, order = torch.randn(64, 10).t(), torch.stack([torch.randperm(10)] * 2, 1)[:, 0]
    weights = torch.rand(5, 2)
    assert torch.equal(torch.ops.qaig.experts_sum(rows, weights, order), experts_sum_reference(rows, weights, order))


@needs_kernels
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x[0], "hidden must have two dimensions"),
        (0, lambda x: x.int(), "hidden must be a floating tensor"),
        (0, lambda x: x[:2], "index must have shape"),
        (1, lambda i: i[0], "index must have two dimensions"),
        (1, lambda i: i.short(), "index must have dtype int32, Long"),
        (1, lambda i: i - 1, "must be from 0 to 5 .5 for none., got -1"),
        (1, lambda i: i + 6, "must be from 0 to 5 .5 for none., got 6"),
        (1, lambda i: i + 2**40, "must be from 0 to 5"),
        (1, lambda i: i - 2**63, "must be from 0 to 5"),
        (2, lambda n: 0, "a stack must have 1 to 65536 experts"),
        (2, lambda n: 6, "as many choices or more, got 6 and 5"),
        (3, lambda n: 65537, "as many choices or more, got 4 and 65537"),
        (3, lambda n: -1, "as many choices or more, got 4 and -1"),
    ],
)
def test_arguments_of_routing_that_do_not_fit(index, change, message) -> None:
    arguments = [torch.randn(3, 8), torch.zeros(3, 2, dtype=torch.int64), 4, 5]
    arguments[index] = change(arguments[index])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qaig.experts_route(*arguments)


@needs_kernels
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x[0], "rows must have two dimensions"),
        (0, lambda x: x[:5], "rows must have shape"),
        (0, lambda x: x.double(), "rows must have dtype"),
        (1, lambda w: w[0], "weights must have two dimensions"),
        (1, lambda w: w[:2], "rows must have shape"),
        (1, lambda w: w.double(), "weights must have dtype"),
        (2, lambda o: o[:5], "order must have shape"),
        (2, lambda o: o.int(), "order must have dtype"),
        (2, lambda o: o - 1, "order must hold each number from 0 to 5 once, got -1 in row 0"),
        (2, lambda o: o + 1, "got 6 in row 5"),
        (2, lambda o: o // 2, "got 0 in row 1"),
        (2, lambda o: o + 2**62, "order must hold each number"),
    ],
)
def test_arguments_of_the_sum_that_do_not_fit(index, change, message) -> None:
    arguments = [torch.randn(6, 8), torch.rand(3, 2), torch.arange(6)]
    arguments[index] = change(arguments[index])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qaig.experts_sum(*arguments)


def test_fake_tensors_have_the_shapes_of_others() -> None:
    hidden, index, weights = torch.randn(3, 8).bfloat16(), torch.zeros(3, 2, dtype=torch.int32), torch.rand(3, 2)
    found = torch.ops.qaig.experts_route(hidden, index, 4, 5)
    fake = torch.ops.qaig.experts_route(hidden.to("meta"), index.to("meta"), 4, 5)
    pairs = list(zip(found, fake, strict=True))
    pairs.append(
        (
            torch.ops.qaig.experts_sum(found[0], weights, found[2]),
            torch.ops.qaig.experts_sum(fake[0], weights.to("meta"), fake[2]),
        )
    )
    for ours, theirs in pairs:
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "longcat_flash"])
def test_a_stack_computes_the_same_with_gradients_and_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts(name)))
    packed.to_kernel_layout()
    hidden, index, weights = inputs_of(packed.stack)
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weights)]
    out = packed(leaves[0], index, leaves[1])
    out.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)
    calls = []
    for operator in ("route", "sum"):
        whole = getattr(experts_routing, f"experts_{operator}_reference")
        monkeypatch.setattr(
            experts_routing,
            f"experts_{operator}_reference",
            lambda *args, whole=whole, operator=operator: calls.append(operator) or whole(*args),
        )
    with torch.no_grad():
        assert torch.equal(packed(hidden, index, weights), out)
    assert calls == ([] if extension.load() else ["route", "sum"])
