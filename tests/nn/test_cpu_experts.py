"""The compiled CPU kernel of `experts_linear`, in every instruction set, against float64 and single linears."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.nn.rounding_errors import ROUNDING, error
from transformers_qaig.formats.packing import CPU_LAYOUT, KERNEL_BITS, pack, pack_zero_point
from transformers_qaig.formats.reference import round_activations
from transformers_qaig.kernels import extension
from transformers_qaig.nn import experts_ops  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.skipif(not extension.load(), reason=f"no compiled kernels: {extension.why_not()}")


@dataclass
class Stack:
    """One projection of a stack: the tensors of each expert's linear, as `qaig::linear` takes them."""

    packed: list[Tensor]
    scale: list[Tensor]
    zero: list[Tensor] | None
    bits: list[int]
    out_features: int
    in_features: int
    group_size: int
    layout: int = 0

    @classmethod
    def random(cls, bits, in_features=96, out_features=40, group_size=32, sym=False, dtype=torch.float32):
        groups = 1 if group_size == -1 else in_features // group_size
        codes = [torch.randint(0, 2**b, (out_features, in_features), dtype=torch.uint8) for b in bits]
        zeros = [torch.randint(0, 2**b, (out_features, groups), dtype=torch.uint8) for b in bits]
        scale = [torch.randn(out_features, groups).sign() * (torch.rand(out_features, groups) + 0.1) for _ in bits]
        return cls(
            [pack(each, b) for each, b in zip(codes, bits, strict=True)],
            [each.to(dtype) for each in scale],
            None if sym else [pack_zero_point(each, b) for each, b in zip(zeros, bits, strict=True)],
            bits,
            out_features,
            in_features,
            group_size,
        )

    def in_cpu_layout(self) -> "Stack":
        sizes = [(self.out_features, self.in_features, b, self.group_size, 0) for b in self.bits]
        zeros = self.zero or [None] * len(self.bits)
        tensors = zip(self.packed, self.scale, zeros, sizes, strict=True)
        words, scales, repacked = zip(*(torch.ops.qaig.repack(p, s, z, *n) for p, s, z, n in tensors), strict=True)
        return replace(
            self, packed=words, scale=scales, zero=None if self.zero is None else repacked, layout=CPU_LAYOUT
        )

    def arguments(self, activation_bits=16) -> list:
        zero = self.zero
        if zero is not None:
            zero = torch.stack(zero) if self.layout else torch.cat([each.flatten() for each in zero])
        same = len(set(self.bits)) == 1
        return [
            torch.cat([each.flatten() for each in self.packed]), torch.stack(list(self.scale)), zero,
            self.bits[:1] if same else self.bits, self.out_features, self.group_size, activation_bits, self.layout,
        ]  # fmt: skip

    def experts(self, x: Tensor, counts: list[int], activation_bits=16) -> Tensor:
        return torch.ops.qaig.experts_linear(x, offsets_of(counts), *self.arguments(activation_bits))

    def exact(self, x: Tensor, counts: list[int], activation_bits=16) -> Tensor:
        x = (round_activations(x) if activation_bits == 8 else x).double()
        return torch.ops.qaig.experts_linear_reference(x, offsets_of(counts), *self.arguments())

    def linears(self, x: Tensor, counts: list[int], activation_bits=16) -> Tensor:
        """Runs `qaig::linear` for each expert."""
        zeros = self.zero or [None] * len(self.bits)
        rows = x[: sum(counts)].split(counts)
        return torch.cat(
            [
                torch.ops.qaig.linear(
                    part, packed, scale, zero, None, 0, 0, self.out_features, b, self.group_size, activation_bits,
                    self.layout,
                )
                for part, packed, scale, zero, b in zip(rows, self.packed, self.scale, zeros, self.bits, strict=True)
            ]
        )  # fmt: skip


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)


def check(stack: Stack, x: Tensor, counts: list[int], activation_bits=16) -> None:
    """The result is near the truth, and to the bit that of single linears, in both layouts."""
    out = stack.experts(x, counts, activation_bits)
    assert out.dtype == x.dtype
    assert error(out, stack.exact(x, counts, activation_bits)) < ROUNDING[x.dtype]
    assert torch.equal(out[: sum(counts)], stack.linears(x, counts, activation_bits))
    assert not out[sum(counts) :].any()
    if set(stack.bits) <= set(KERNEL_BITS):
        assert torch.equal(stack.in_cpu_layout().experts(x, counts, activation_bits), out)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_every_width(isa, bits, sym, activation_bits):
    for group_size, dtype in ((32, torch.bfloat16), (96, torch.float16), (-1, torch.float32)):
        stack = Stack.random([bits] * 6, group_size=group_size, sym=sym)
        counts = [1, 0, 3, 9, 2, 5]
        check(stack, torch.randn(sum(counts) + 2, 96).to(dtype), counts, activation_bits)


@pytest.mark.parametrize("sym", [False, True])
def test_experts_of_different_widths(isa, sym):
    for bits in ([2, 3, 4, 8, 4, 2], [2, 7, 5, 3, 8, 6]):
        stack = Stack.random(bits, 130, 33, 65, sym=sym, dtype=torch.bfloat16)
        check(stack, torch.randn(24, 130).bfloat16(), [4, 1, 0, 7, 12, 0])


@pytest.mark.parametrize(
    "counts",
    [[0, 0, 0], [30, 0, 0], [0, 0, 30], [0, 17, 0], [1, 1, 1]],
    ids=["none", "all to the first", "all to the last", "some to one", "one each"],
)
def test_how_rows_are_routed(isa, counts):
    check(Stack.random([4, 3, 4]), torch.randn(30, 96), counts)


def test_no_rows_at_all(isa):
    out = Stack.random([4, 4]).experts(torch.randn(0, 96), [0, 0])
    assert out.shape == (0, 40)


def test_more_rows_than_are_quantized_at_once(isa):
    counts = [700, 0, 1500, 3, 1024, 400]
    stack = Stack.random([4, 2, 3, 8, 4, 4], 64, 32)
    check(stack, torch.randn(sum(counts), 64).bfloat16(), counts)


def test_experts_without_rows_are_not_read(isa):
    stack = Stack.random([4, 4, 3, 4])
    x, counts = torch.randn(9, 96), [0, 5, 0, 4]
    expected = stack.experts(x, counts)
    for expert in (0, 2):
        stack.scale[expert].fill_(torch.nan)
    assert torch.equal(stack.experts(x, counts), expected)
    assert torch.equal(stack.in_cpu_layout().experts(x, counts), expected)


def test_repeated_rows_of_an_expert_have_equal_results(isa):
    x = torch.randn(1, 96).bfloat16()
    for count in (2, 4, 8):
        out = Stack.random([4, 4]).experts(x.expand(2 * count, -1), [count, count])
        assert torch.equal(out[:count], out[:1].expand(count, -1))


def test_experts_of_one_token_and_of_nearly_equal_ones(isa):
    """Neighbouring experts with equal rows share integers; rows that differ in the last value do not."""
    stack = Stack.random([4, 3, 4, 2, 8, 4], 130, 40, -1)
    x = torch.randn(1, 130).repeat(12, 1)
    x[2, -1] += 1
    x[7, 64] = torch.nan
    for counts in ([1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2], [0, 6, 0, 6, 0, 0], [1, 2, 2, 1, 3, 3]):
        rows = x[: sum(counts)]
        assert torch.equal(stack.experts(rows, counts).nan_to_num(), stack.linears(rows, counts).nan_to_num())


def test_rows_that_are_not_finite_stay_in_their_rows(isa):
    stack, counts = Stack.random([4, 3, 8]), [6, 1, 2]
    x = torch.randn(9, 96)
    x[1, 40], x[6, 3], x[8, 0] = torch.inf, torch.nan, 3e38
    out, exact = stack.experts(x, counts), stack.exact(x, counts).float()
    assert torch.equal(out.isfinite(), exact.isfinite())
    whole = [0, 2, 3, 4, 5, 7]
    assert error(out[whole], exact[whole].double()) < 1e-6


def test_threads_do_not_change_the_result(isa):
    counts = [1, 70, 0, 9, 2, 33]
    stack = Stack.random([4, 3, 4, 2, 8, 4], 256, 208).in_cpu_layout()
    x, before, results = torch.randn(sum(counts), 256).bfloat16(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(stack.experts(x, counts))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_strided_input(isa):
    stack, counts = Stack.random([4, 4]), [3, 4]
    x = torch.randn(96, 14)
    assert torch.equal(stack.experts(x.t()[::2], counts), stack.experts(x.t()[::2].contiguous(), counts))


def test_float64_goes_to_the_reference():
    stack, counts = Stack.random([4, 4]), [3, 4]
    x = torch.randn(7, 96).double()
    assert torch.equal(stack.experts(x, counts), stack.exact(x, counts))


@pytest.mark.parametrize(
    "offsets",
    [[0, 5, 3, 9], [0, 4, 8, 10], [1, 4, 8, 9], [-1, 4, 8, 9], [0, -2, 8, 9], [0, 2**31 - 1, 8, 9]],
    ids=["decrease", "end after the rows", "begin with 1", "begin with -1", "negative", "huge"],
)
def test_offsets_that_are_out_of_range(offsets):
    stack = Stack.random([4, 4, 4])
    with pytest.raises(RuntimeError, match=r"offsets must begin with 0.*out of range"):
        torch.ops.qaig.experts_linear(torch.randn(9, 96), torch.tensor(offsets, dtype=torch.int32), *stack.arguments())


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x[0], "x must have two dimensions"),
        (0, lambda x: x.int(), "x must be a floating tensor"),
        (0, lambda x: x[:, :64], "packed must have shape"),
        (1, lambda o: o.long(), "offsets must have dtype int32"),
        (1, lambda o: o[:1], "a stack must have 1 to 65536 experts"),
        (1, lambda o: o[None], "offsets must have one dimension"),
        (1, lambda o: o[:3], "packed must have shape"),
        (2, lambda p: p[1:], "packed must have shape"),
        (2, lambda p: p.view(-1, 1), "packed must have shape"),
        (2, lambda p: p.long(), "packed must have dtype int32"),
        (3, lambda s: s[:2], "scale must have shape"),
        (3, lambda s: s.double(), "scale must have dtype"),
        (4, lambda z: z[1:], "zero must have shape"),
        (4, lambda z: z.byte(), "zero must have dtype"),
        (5, lambda b: [4, 4], "bits must have one entry, or one for each of 3 experts, got 2"),
        (5, lambda b: [], "bits must have one entry"),
        (5, lambda b: [9], "bits must be between 2 and 8"),
        (5, lambda b: [3], "packed must have shape"),
        (6, lambda n: n + 10, "packed must have shape"),
        (6, lambda n: 2**31, "below 2"),
        (6, lambda n: 2**31 - 1, "packed must have shape"),
        (6, lambda n: 0, "must be positive"),
        (7, lambda g: 33, "group_size must be -1"),
        (8, lambda a: 4, "activation_bits=4 has no kernel here"),
        (9, lambda a: 2, "layout=2 belongs to another backend"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", [0, 1])
def test_arguments_that_do_not_fit(index, change, message, layout):
    stack = Stack.random([4, 4, 4])
    stack = stack.in_cpu_layout() if layout else stack
    arguments = [torch.randn(9, 96), offsets_of([3, 0, 4]), *stack.arguments()]
    if (index, layout) == (4, 1):
        change, message = lambda z: z.int(), "zero must have dtype uint8"
    arguments[index] = change(arguments[index])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qaig.experts_linear(*arguments)


def test_the_sum_of_many_large_sections_does_not_overflow():
    """2^16 experts of 2^60 words each make 0 words in 64 bits."""
    offsets = torch.zeros(2**16 + 1, dtype=torch.int32)
    empty = torch.empty(0, dtype=torch.int32)
    for layout, group_size in itertools.product((0, 1), (-1, 1)):
        x = torch.empty(0, 2**31 - 1, dtype=torch.float16)
        with pytest.raises(RuntimeError, match=f"packed must have shape \\({2**63 - 1},\\)"):
            torch.ops.qaig.experts_linear(
                x, offsets, empty, torch.empty(0), None, [8], 2**31 - 1, group_size, 16, layout
            )


def test_layout_of_the_cpu_needs_its_widths():
    stack = replace(Stack.random([5, 5]), layout=1, zero=None)
    with pytest.raises(RuntimeError, match="layout=1 is for 2, 3, 4 and 8 bits, got bits=5"):
        stack.experts(torch.randn(2, 96), [1, 1])
