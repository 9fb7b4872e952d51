"""The CUDA kernels of experts on the emulator: right sums, no expert read that has no rows, nothing out of bounds."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.products import BITS, DTYPES, ROUNDING, error, exact
from tools.emulator.compilation import COMPILER
from tools.emulator.weights import Weight, random_weight
from transformers_qaig.formats.packing import CUDA_LAYOUT

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)


def random_stack(bits: list[int], out_features: int, in_features: int, group_size: int = 32, **options) -> list[Weight]:
    return [random_weight(b, out_features, in_features, group_size, **options) for b in bits]


def check(
    emulator, weights: list[Weight], counts: list[int], dtype=torch.float16, activation_bits=16, others=0
) -> None:
    """The result is near the truth, zero for the `others`, and made of the experts with rows alone."""
    x = torch.randn(sum(counts) + others, weights[0].in_features).to(dtype)
    routed = [e for e, count in enumerate(counts) if count]
    y = emulator.experts(x, offsets_of(counts), weights, activation_bits, routed)
    start = 0
    for w, count in zip(weights, counts, strict=True):
        rows = slice(start, start + count)
        assert not count or error(y[rows], exact(w, x[rows], activation_bits)) < ROUNDING[dtype]
        start += count
    assert not y[start:].any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize(
    "counts",
    [[0, 1, 3, 0, 9, 1], [0, 20, 1, 17, 8, 0], [70, 0, 1, 64, 33, 129]],
    ids=["gemv of 8", "gemv of 16", "gemm"],
)
def test_every_width(emulator, bits, dtype, activation_bits, counts):
    weights = random_stack([bits] * 6, 136, 160, dtype=dtype)
    check(emulator, weights, counts, dtype, activation_bits, others=2)


@pytest.mark.parametrize("counts", [[1, 0, 2, 1, 5], [12, 0, 20, 1, 9], [70, 0, 20, 1, 9]])
def test_experts_of_different_widths(emulator, counts):
    check(emulator, random_stack([4, 8, 3, 2, 4], 70, 96, sym=True), counts, others=1)


@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"), [(1, 32, -1), (65, 40, -1), (130, 96, 48), (17, 57, 19)]
)
@pytest.mark.parametrize("count", [2, 16, 65])
def test_ragged_shapes(emulator, out_features, in_features, group_size, count):
    check(emulator, random_stack([4, 3], out_features, in_features, group_size), [count, count // 2])


@pytest.mark.parametrize("counts", [[0] * 70, [0] * 69 + [3], [1] * 70, [0, 40] + [0] * 68])
def test_more_experts_than_a_warp_has_lanes(emulator, counts):
    check(emulator, random_stack([4, 2] * 35, 64, 64), counts, others=2)


@pytest.mark.parametrize(
    "offsets",
    [[0, 9, 3, 5], [0, 4, 8, 1000], [-7, 4, 8, 9], [5, 4, 3, 2], [2**31 - 1, 0, -(2**31), 2**31 - 1]],
    ids=["decrease", "beyond the rows", "negative", "all decrease", "huge"],
)
@pytest.mark.parametrize("rows", [9, 40, 100])
def test_offsets_out_of_range_reach_nothing_outside(emulator, offsets, rows):
    weights = random_stack([4, 4, 4], 70, 64)
    emulator.experts(torch.randn(rows, 64).half(), torch.tensor(offsets, dtype=torch.int32), weights)


def test_a_gpu_without_gemm_kernels(emulator):
    emulator.set_capability(75)
    try:
        check(emulator, random_stack([4, 4], 70, 96), [70, 3])
    finally:
        emulator.set_capability(86)


def test_order_of_blocks_does_not_matter(emulator):
    weights, x, results = random_stack([4, 3, 4], 200, 96), torch.randn(40, 96).half(), []
    for seed, processors in ((1, 1), (2, 3), (3, 8)):
        emulator.seed(seed)
        emulator.set_processors(processors)
        results.append(emulator.experts(x, offsets_of([7, 30, 3]), weights))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# -- the operator


def by_operator(x: Tensor, counts: list[int], weights: list[Weight], activation_bits=16, layout=CUDA_LAYOUT) -> Tensor:
    first = weights[0]
    tensors = [(w.words, w.scale, w.zero) if layout else w.checkpoint for w in weights]
    packed, scale, zero = zip(*tensors, strict=True)
    zero = None if first.zero is None else torch.stack(zero) if layout else torch.cat([z.flatten() for z in zero])
    return torch.ops.qaig_emulated.experts_linear(
        x, offsets_of(counts), torch.cat([p.flatten() for p in packed]), torch.stack(scale), zero,
        [w.bits for w in weights], first.out_features, first.group_size, activation_bits, layout,
    )  # fmt: skip


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(CUDA_LAYOUT, torch.float16), (CUDA_LAYOUT, torch.bfloat16), (0, torch.bfloat16), (0, torch.float32)],
)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_operator(layout, dtype, activation_bits):
    """The reference computes in the checkpoint layout."""
    weights, counts = random_stack([4, 3, 4], 70, 96, 48), [3, 0, 12]
    x = torch.randn(16, 96).to(dtype)
    y = by_operator(x, counts, weights, activation_bits, layout)
    assert y.dtype == dtype
    for w, rows in ((weights[0], slice(0, 3)), (weights[2], slice(3, 15))):
        assert error(y[rows], exact(w, x[rows], activation_bits)) < 2 * ROUNDING.get(dtype, 1e-6)
    assert not y[15].any()


@pytest.mark.usefixtures("operators")
def test_operator_without_rows():
    assert by_operator(torch.randn(0, 96).half(), [0, 0], random_stack([4, 4], 70, 96)).shape == (0, 70)


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x[0], "x must have two dimensions"),
        (1, lambda o: o.long(), "offsets must have dtype int32"),
        (1, lambda o: o[:2], "bits must have one entry"),
        (2, lambda p: p[1:], "packed must have shape"),
        (3, lambda s: s[:1], "scale must have shape"),
        (4, lambda z: z[:, :, :, :32], "zero must have shape"),
        (5, lambda b: [4, 4, 4], "bits must have one entry"),
        (5, lambda b: [5, 5], "layout=2 is for 2, 3, 4 and 8 bits, got bits=5"),
        (6, lambda n: 2**31 - 1, "below 2^24"),
        (7, lambda g: 33, "group_size must be -1"),
        (8, lambda a: 4, "activation_bits=4 has no kernel here"),
        (9, lambda a: 1, "layout=1 belongs to another backend"),
    ],
)
def test_arguments_that_do_not_fit(index, change, message):
    weights = random_stack([4, 4], 70, 96)
    arguments = [
        torch.randn(7, 96).half(), offsets_of([3, 4]), torch.cat([w.words.flatten() for w in weights]),
        torch.stack([w.scale for w in weights]), torch.stack([w.zero for w in weights]), [4, 4], 70, 32, 16,
        CUDA_LAYOUT,
    ]  # fmt: skip
    arguments[index] = change(arguments[index])
    with pytest.raises(RuntimeError, match=message.replace("^", r"\^")):
        torch.ops.qaig_emulated.experts_linear(*arguments)
