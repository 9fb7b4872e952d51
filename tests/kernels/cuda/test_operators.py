"""The CUDA operators of csrc/ops/cuda with CPU tensors, their kernels on the emulator: checks, paths, chunks."""

import ctypes
import itertools
import shutil

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.products import ROUNDING, error, exact, in_checkpoint_layout
from tests.tolerance import assert_close, assert_product
from tools.emulator import emulated
from tools.emulator.compilation import COMPILER
from tools.emulator.weights import Weight, random_weight
from transformers_qaig.formats import packing, reference
from transformers_qaig.formats.hadamard import Rotation, rotate

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("operators"),
]

LAYOUT = packing.CUDA_LAYOUT


def linear(x: Tensor, w: Weight, activation_bits: int = 16, layout: int = LAYOUT) -> Tensor:
    return torch.ops.qaig_emulated.linear(
        x, w.words, w.scale, w.zero, w.bias, 0, 0, w.out_features, w.bits, w.group_size, activation_bits, layout
    )


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 256, 257])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_few_rows_and_many(rows, bits, dtype):
    """Up to 16 rows by gemv, up to 256 by a gemm; more by torch with the dequantized weight."""
    w = random_weight(bits, 70, 96, 32, dtype=dtype, bias=dtype)
    x = torch.randn(rows, 96).to(dtype)
    y = linear(x, w)
    assert y.shape == (rows, 70)
    assert y.dtype == dtype
    assert rows == 0 or error(y, exact(w, x)) < (ROUNDING[dtype] if rows <= 256 else 2 * ROUNDING[dtype])


def test_a_weight_that_is_unpacked_in_parts():
    """3 MiB of it at a time: here 64 of 130 rows."""
    w = random_weight(4, 130, 24576, 128, dtype=torch.bfloat16, bias=torch.float64)
    x = torch.randn(257, 24576).bfloat16()
    assert_product(linear(x, w), x, reference.dequantize(in_checkpoint_layout(w), torch.bfloat16), w.bias.bfloat16())


def test_many_rows_without_gemm_kernels(operators):
    """A GPU of compute capability 7.5 takes up to 32 rows by gemv, 16 at a time."""
    operators.set_capability(75)
    try:
        for rows in (32, 33):
            w, x = random_weight(4, 70, 96, 32, bias=torch.float16), torch.randn(rows, 96).half()
            assert error(linear(x, w), exact(w, x)) < (1 if rows == 32 else 2) * ROUNDING[torch.float16]
    finally:
        operators.set_capability(86)


@pytest.mark.parametrize("shape", [(96,), (2, 3, 96), (2, 0, 96), (0, 96)])
def test_leading_dimensions(shape):
    w, x = random_weight(3, 40, 96, 32), torch.randn(shape).half()
    y = linear(x, w)
    assert y.shape == (*shape[:-1], 40)
    assert not x.numel() or error(y, exact(w, x)) < ROUNDING[torch.float16]


def test_input_that_is_strided_or_misaligned():
    w = random_weight(3, 40, 96, 32)
    x = torch.randn(96, 5).half().t()
    assert error(linear(x, w), exact(w, x)) < ROUNDING[torch.float16]
    x = torch.randn(5 * 96 + 1).half()[1:].view(5, 96)
    assert error(linear(x, w), exact(w, x)) < ROUNDING[torch.float16]


def test_float32_scales_take_the_dense_path():
    w = random_weight(4, 40, 96, 32, dtype=torch.float32)
    x = torch.randn(3, 96).half()
    assert_product(linear(x, w), x, reference.dequantize(in_checkpoint_layout(w), torch.float16))


@pytest.mark.parametrize("in_features", [96, 57])
@pytest.mark.parametrize("rows", [1, 20, 300])
@pytest.mark.parametrize("bits", [4, 8])
def test_eight_bit_activations(in_features, rows, bits):
    w = random_weight(bits, 40, in_features, in_features, dtype=torch.bfloat16, bias=torch.bfloat16)
    x = torch.randn(rows, in_features).bfloat16()
    assert error(linear(x, w, activation_bits=8), exact(w, x, 8)) < ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("group_size", "block"), [(32, 0), (32, 16), (24, 0)])
def test_eight_bit_activations_without_kernels(operators, dtype, bias, group_size, block):
    """float32 scales, and GPUs that cannot multiply integers: a dense product of the rounded activations."""
    x = torch.randn(40, 96).to(dtype)
    rotated = rotate(x, Rotation(block, 5)) if block else x
    for scale, capability in ((torch.float32, 86), (dtype, 75)):
        w = random_weight(4, 130, 96, group_size, dtype=scale, bias=bias)
        operators.set_capability(capability)
        try:
            y = torch.ops.qaig_emulated.linear(
                x, w.words, w.scale, w.zero, w.bias, block, 5, 130, 4, group_size, 8, LAYOUT
            )
        finally:
            operators.set_capability(86)
        assert y.dtype == dtype
        assert error(y, exact(w, rotated, 8)) < 2 * ROUNDING[dtype]


def test_rows_that_are_not_rounded(operators):
    """Infinities and NaNs, in the product of integers and in the dense one."""
    w = random_weight(4, 40, 96, 32, sym=True)
    x = torch.randn(35, 96).half()
    x[4, 3], x[5, 9] = torch.inf, torch.nan
    want = exact(w, x, 8)
    for capability in (75, 86):
        operators.set_capability(capability)
        try:
            y = linear(x, w, activation_bits=8)
        finally:
            operators.set_capability(86)
        assert torch.equal(y.isnan(), want.isnan())
        assert torch.equal(y.isinf(), want.isinf())
        assert error(torch.cat([y[:4], y[6:]]), torch.cat([want[:4], want[6:]])) < 2 * ROUNDING[torch.float16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_inputs_are_the_references(dtype):
    w = random_weight(4, 40, 96, 32)
    x = torch.randn(3, 96, dtype=dtype)
    y = torch.ops.qaig_emulated.linear(x, *w.checkpoint, None, 0, 0, 40, 4, 32, 16, packing.CHECKPOINT_LAYOUT)
    assert_close(y, reference.linear(x, in_checkpoint_layout(w), None, None, 16), 96)


@pytest.mark.parametrize("rows", [2, 20, 70])
def test_a_rotated_input(rows):
    w = random_weight(4, 40, 96, 32, bias=torch.float16)
    x = torch.randn(rows * 96 + 1).half()[1:].view(rows, 96)
    y = torch.ops.qaig_emulated.linear(x, w.words, w.scale, w.zero, w.bias, 16, 5, 40, 4, 32, 8, LAYOUT)
    assert error(y, exact(w, rotate(x, Rotation(16, 5)), 8)) < ROUNDING[torch.float16]


def test_layers_that_rotate_their_input_apart():
    weights = [random_weight(4, 40, 96, 32) for _ in range(4)]
    blocks, seeds = [32, 32, 16, 0], [7, 8, 7, 3]
    x = torch.randn(2, 96).half()
    results = torch.ops.qaig_emulated.linear_many(
        x, *([getattr(w, name) for w in weights] for name in ("words", "scale", "zero", "bias")), blocks, seeds,
        *([getattr(w, name) for w in weights] for name in ("out_features", "bits", "group_size")), 8, LAYOUT,
    )  # fmt: skip
    for w, y, block, seed in zip(weights, results, blocks, seeds, strict=True):
        rotated = rotate(x, Rotation(block, seed)) if block else x
        assert error(y, exact(w, rotated, 8)) < ROUNDING[torch.float16]


def test_a_rotated_input_goes_to_the_reference():
    """The reference answers: on the emulator, in the checkpoint layout, since it reads the CUDA layout on GPUs only."""
    w = random_weight(4, 40, 96, 32)
    x = torch.randn(3, 96).half()
    y = torch.ops.qaig_emulated.linear(x, *w.checkpoint, None, 16, 5, 40, 4, 32, 8, packing.CHECKPOINT_LAYOUT)
    assert_close(y, reference.linear(x, in_checkpoint_layout(w), None, Rotation(16, 5), 8), 96)


@pytest.mark.parametrize(("rows", "activation_bits"), [(6, 16), (20, 16), (20, 8)])
def test_many_layers(rows, activation_bits):
    """More than fit in a launch, of several widths and orders of slots, one of them with float32 scales."""
    weights = [random_weight(bits, 40 + bits, 114, 57, bias=torch.float16) for bits in (2, 3, 4, 8) * 2]
    weights += [random_weight(3, 70, 114, -1, sym=True), random_weight(3, 70, 114, -1, dtype=torch.float32)]
    x = torch.randn(2, rows // 2, 114).half()
    results = torch.ops.qaig_emulated.linear_many(
        x, *([getattr(w, name) for w in weights] for name in ("words", "scale", "zero", "bias")),
        *([0] * len(weights) for _ in range(2)),
        *([getattr(w, name) for w in weights] for name in ("out_features", "bits", "group_size")),
        activation_bits, LAYOUT,
    )  # fmt: skip
    for w, y in zip(weights, results, strict=True):
        assert y.shape == (2, rows // 2, w.out_features)
        assert error(y, exact(w, x, activation_bits)) < 2 * ROUNDING[torch.float16]


def test_dequantize():
    w = random_weight(3, 70, 96, 32)
    rows = torch.ops.qaig_emulated.dequantize(w.words, w.scale, w.zero, 70, 96, 3, 32, LAYOUT, 5, 69)
    assert torch.equal(rows, reference.dequantize(in_checkpoint_layout(w), torch.float32)[5:69])


def replaced(index: int, value: object) -> list[object]:
    w = random_weight(3, 70, 96, 32)
    arguments = [torch.randn(2, 96).half(), w.words, w.scale, w.zero, torch.zeros(70), 0, 0, 70, 3, 32, 16, LAYOUT]
    arguments[index] = value
    return arguments


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(2, 96, dtype=torch.int32), "x must be a floating tensor"),
        (0, torch.zeros(2, 64).half(), r"packed must have shape \(2, 1, 3, 32, 4\), got \(2, 2, 3, 32, 4\)"),
        (1, torch.zeros(2, 2, 3, 32, 4), "packed must have dtype int32"),
        (1, torch.zeros(1, 2, 3, 32, 4, dtype=torch.int32), "packed must have shape"),
        (2, torch.zeros(2, 2, 64).half(), r"scale must have shape \(2, 3, 64\)"),
        (2, torch.zeros(2, 3, 64).double(), "scale must have dtype"),
        (3, torch.zeros(2, 3, 32, dtype=torch.uint8), "zero must have shape"),
        (3, torch.zeros(2, 3, 64, dtype=torch.int32), "zero must have dtype uint8"),
        (4, torch.zeros(71), r"bias must have shape \(70,\)"),
        (5, 64, "rotation: block must be one of"),
        (6, -1, "rotation: seed"),
        (7, 2**40, "out_features"),
        (7, 200, "packed must have shape"),
        (8, 9, "bits must be between 2 and 8"),
        (8, 5, "layout=2 is for 2, 3, 4 and 8 bits"),
        (9, 0, "group_size"),
        (10, 4, "activation_bits=4"),
        (11, 1, "layout=1 belongs to another backend"),
        (11, 0, r"packed must have shape \(70, 9\)"),
    ],
)
def test_untrusted_arguments_are_refused_by_name(index, value, message):
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        torch.ops.qaig_emulated.linear(*replaced(index, value))


def zeros_made(operators: emulated.Emulator, graph: int) -> int:
    """How many tensors of zeros a product asks torch for, captured in a graph or not (0)."""
    w, x = random_weight(4, 70, 96, 32), torch.randn(3, 96).half()
    operators.capture(graph)
    try:
        with torch.profiler.profile() as profile:
            y = linear(x, w)
    finally:
        operators.capture(0)
    assert error(y, exact(w, x)) < ROUNDING[torch.float16]
    return sum(event.count for event in profile.key_averages() if event.key == "aten::new_zeros")


@pytest.fixture
def fresh(tmp_path):
    """The kernels, loaded anew: no semaphores are given away."""
    copy = tmp_path / "kernels.so"
    shutil.copy(emulated.build().path, copy)
    return emulated.Emulator(copy)


def test_a_stream_that_asks_for_more_and_more_counters(fresh):
    """Leaves enough for others."""
    for count in range(1024, 100 * 1024, 1024):
        assert fresh.semaphores(count)
    assert fresh.semaphores(1 << 19, 8)
    assert fresh.semaphores(1 << 18, 9)
    assert fresh.semaphores(1 << 18 | 1, 9) is None


def test_counters(fresh):
    """A part for each stream and graph, zero and apart from the others, until there are no more."""
    fresh.capture(5)
    assert fresh.semaphores(10) is None  # nothing can be set aside while a graph is captured
    fresh.capture(0)
    sizes = {(0, 0): 10, (0, 8): 1024, (5, 0): 1, (6, 0): 1025, (6, 8): 4000}
    given = {}
    for key, size in sizes.items():
        fresh.capture(key[0])
        given[key] = fresh.semaphores(size, key[1])
        assert fresh.semaphores(size, key[1]) == given[key]
    spans = sorted((address, address + 4 * sizes[key]) for key, address in given.items())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert not any(ctypes.string_at(begin, end - begin).strip(b"\0") for begin, end in spans)
    fresh.capture(0)
    larger = fresh.semaphores(1025)
    assert larger >= spans[-1][1]
    assert fresh.semaphores(10) == larger
    fresh.capture(7)
    assert fresh.semaphores(1 << 20) is None
    assert fresh.semaphores(1) is not None


def test_only_a_launch_without_counters_brings_its_own(operators):
    """torch would keep what is allocated for good from recording graphs: nothing is asked of it in other launches."""
    assert zeros_made(operators, 0) == 0
    assert [zeros_made(operators, graph) for graph in (1, 2, 2)] == [0, 0, 0]
    operators.capture(3)
    streams = itertools.count(8)
    while operators.semaphores(1, next(streams)):
        pass
    assert zeros_made(operators, 4) == 1
    assert zeros_made(operators, 2) == 0
