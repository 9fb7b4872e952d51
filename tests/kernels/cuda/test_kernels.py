"""The CUDA kernels on the emulator, against float64 products with the dequantized weight."""

import itertools

import pytest
import torch

from tests import seeds
from tests.kernels.cuda import gemm_cases
from tests.kernels.cuda.products import BITS, DTYPES, ROUNDING, check, error, exact, in_checkpoint_layout
from tools.emulator.compilation import COMPILER
from tools.emulator.weights import make_weight, random_weight
from transformers_qaig.formats import cuda_layout, reference
from transformers_qaig.formats.hadamard import BLOCKS, Rotation, rotate

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sym", [False, True])
def test_every_width(emulator, bits, dtype, sym):
    for group_size, rows in itertools.product((32, 64, 96, -1), (1, 4, 8, 9, 16)):
        w = random_weight(bits, 130, 192, group_size, sym, dtype, bias=dtype)
        check(emulator, torch.randn(rows, 192).to(dtype), [w])


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_sweep(emulator, bits, dtype, activation_bits):
    """Widths, groups, symmetry, rows, processors and orders of execution."""
    shapes = [(64, 64), (1, 128), (200, 384), (96, 1152), (577, 256)]
    for number, ((n, k), group_size, sym, rows) in enumerate(
        itertools.product(shapes, (32, 64, 128, -1), (False, True), (1, 2, 7, 8, 11, 16))
    ):
        if k % group_size:
            continue
        emulator.seed(seeds.seed(number))
        emulator.set_processors(1 + number % 5)
        w = random_weight(bits, n, k, group_size, sym, dtype, bias=dtype if number % 2 else None)
        check(emulator, torch.randn(rows, k).to(dtype), [w], activation_bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"),
    [
        (1, 32, -1),
        (15, 33, -1),
        (17, 114, 57),
        (33, 228, 114),
        (16, 36, 36),
        (31, 1, -1),
        (50, 1100, 275),
        (70, 40, -1),
    ],
)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_ragged_shapes(emulator, bits, out_features, in_features, group_size, activation_bits):
    for dtype, rows in zip(itertools.cycle(DTYPES), (1, 3, 11)):
        w = random_weight(bits, out_features, in_features, group_size, dtype=dtype)
        check(emulator, torch.randn(rows, in_features).to(dtype), [w], activation_bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"),
    [(64, 64, 32), (130, 192, 64), (70, 96, 32), (33, 57, 57), (48, 228, 114), (128, 256, -1), (5, 1, -1)],
)
def test_dequantized_weights_are_the_reference_to_the_bit(emulator, bits, out_features, in_features, group_size):
    for scale_dtype, sym in itertools.product((*DTYPES, torch.float32), (False, True)):
        w = random_weight(bits, out_features, in_features, group_size, sym, scale_dtype)
        for dtype in (torch.float32, *DTYPES):
            expected = reference.dequantize(in_checkpoint_layout(w), dtype)
            assert torch.equal(emulator.dequantize(w, dtype), expected)
            start, stop = out_features // 3, out_features - out_features // 4
            assert torch.equal(emulator.dequantize(w, dtype, start, stop), expected[start:stop])


@pytest.mark.slow
def test_more_rows_than_one_launch_dequantizes(emulator):
    """Its grid has no more than 65,535 blocks of 64 in that direction."""
    rows = 65_537 * 64
    w = random_weight(2, rows, 3)
    whole = reference.dequantize(in_checkpoint_layout(w), torch.float16)
    assert torch.equal(emulator.dequantize(w, torch.float16, 1, rows - 1), whole[1:-1])


@pytest.mark.parametrize("bits", BITS)
def test_the_order_can_be_undone(bits):
    for n, k, group_size, sym in ((64, 64, 32, True), (130, 192, 64, False), (33, 57, 57, False), (48, 228, 114, True)):
        w = random_weight(bits, n, k, group_size, sym)
        packed, scale, zero = cuda_layout.to_checkpoint(w.words, w.scale, w.zero, n, k, bits, group_size)
        assert torch.equal(packed, w.checkpoint[0])
        assert torch.equal(scale, w.checkpoint[1])
        assert zero.numel() == 0 if sym else torch.equal(reference.unpack_zero_point(w.checkpoint[2], bits, n), zero)


def test_results_do_not_depend_on_timing(emulator):
    """Each launch leaves the semaphores as the next one needs them, too."""
    x = torch.randn(5, 1024).bfloat16()
    w = random_weight(3, 200, 1024, 64, dtype=torch.bfloat16)
    gemm_cases.check_order_does_not_matter(emulator, lambda: check(emulator, x, [w], launches=2), 5, 6)


@pytest.mark.parametrize("processors", [1, 2, 7, 40])
@pytest.mark.parametrize("rows", [1, 16])
def test_many_layers_of_several_widths(emulator, processors, rows):
    emulator.set_processors(processors)
    weights = [
        random_weight(2, 64, 512, 32, bias=torch.float16),
        random_weight(3, 200, 512, 128, sym=True, dtype=torch.bfloat16),
        random_weight(8, 17, 512, -1, bias=torch.float32),
        random_weight(4, 130, 512, 64, dtype=torch.bfloat16, bias=torch.bfloat16),
        random_weight(8, 64, 512, 256),
        random_weight(2, 1, 512, -1),
    ]
    check(emulator, torch.randn(rows, 512).half(), weights, launches=2)
    check(emulator, torch.randn(rows, 512).half(), weights, activation_bits=8)
    check(emulator, torch.randn(rows, 512).bfloat16(), weights[3:4] * 8)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_worse_than_a_dense_product(emulator, rows, bits, dtype):
    w = random_weight(bits, 64, 1024, 128, dtype=dtype)
    x = torch.randn(rows, 1024).to(dtype)
    dense = torch.nn.functional.linear(x, reference.dequantize(in_checkpoint_layout(w), dtype))
    assert error(*emulator.matmul(x, [w]), exact(w, x)) <= 1.001 * error(dense, exact(w, x))


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("outlier", [300.0, 1e4])
def test_an_outlier_does_not_drown_its_neighbours(emulator, bits, outlier):
    """Where the outlier's own weight is zero nothing of it is left, and its neighbours must be as exact as ever."""
    zero = torch.randint(0, 2**bits, (64, 2), dtype=torch.uint8)
    codes = torch.randint(0, 2**bits, (64, 256), dtype=torch.uint8)
    codes[:, 5] = zero[:, 0]
    w = make_weight(codes, torch.rand(64, 2).bfloat16() + 0.1, zero, bits, 128)
    x = torch.randn(3, 256).bfloat16()
    x[:, 5] = outlier
    dense = torch.nn.functional.linear(x, reference.dequantize(in_checkpoint_layout(w), torch.bfloat16))
    assert error(*emulator.matmul(x, [w]), exact(w, x)) <= 1.01 * error(dense, exact(w, x))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_largest_sums_do_not_overflow(emulator, bits, activation_bits):
    for sign, zero in itertools.product((1, -1), (0, 2**bits - 1)):
        w = make_weight(
            torch.full((20, 8192), 2**bits - 1 - zero, dtype=torch.uint8),
            torch.full((20, 1), 0.01).bfloat16(),
            torch.full((20, 1), zero, dtype=torch.uint8),
            bits,
            -1,
        )
        check(emulator, torch.full((2, 8192), sign * 1.9921875).bfloat16(), [w], activation_bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_infinities_and_nans_go_through_as_in_torch(emulator, dtype, activation_bits):
    w = random_weight(4, 40, 96, 32, sym=True, dtype=dtype)
    for value in (torch.inf, -torch.inf, torch.nan):
        x = torch.randn(3, 96).to(dtype)
        x[-1, 40] = value
        (out,) = emulator.matmul(x, [w], activation_bits)
        expected = torch.nn.functional.linear(x, reference.dequantize(in_checkpoint_layout(w), dtype))
        assert torch.equal(out[-1].isnan(), expected[-1].isnan())
        assert torch.equal(out[-1].isinf(), expected[-1].isinf())
        assert error(out[:-1], exact(w, x[:-1], activation_bits)) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_activations_are_the_reference_to_the_bit(emulator, dtype):
    x = torch.randn(6, 100) * torch.tensor([1.0, 1e-7, 30.0, 0.0, 1.0, 1.0])[:, None]
    x[4, 3], x[5, 7] = torch.inf, torch.nan
    x = x.to(dtype)
    integers, scale = emulator.quantize_activations(x, 50, 8)
    rounded = (integers.float() * scale[:, None]).view(6, 2, 64)[..., :50].reshape(6, 100)
    torch.testing.assert_close(rounded, reference.round_activations(x), rtol=0, atol=0, equal_nan=True)
    assert not integers.view(6, 2, 64)[..., 50:].any()
    assert scale[4:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("in_features", "group_size"), [(2304, 128), (512, 8), (256, -1), (2560, 20)])
def test_rotated_activations_are_the_reference_to_the_bit(emulator, block, dtype, in_features, group_size):
    seed = 2**63 - 5
    x = (torch.randn(4, in_features) * torch.tensor([1.0, 1e-7, 30.0, 0.0])[:, None]).to(dtype)
    integers, scale = emulator.quantize_activations(x, group_size, 8, (block, seed))
    channels = in_features if group_size == -1 else group_size
    padded = -(-channels // 32) * 32
    slots = integers[:, : in_features // channels * padded].view(4, -1, padded)
    rounded = (slots[..., :channels].float() * scale[:, None, None]).reshape(4, in_features)
    assert torch.equal(rounded, reference.round_activations(rotate(x, Rotation(block, seed))))
    assert not slots[..., channels:].any()
    assert not integers[:, slots.shape[1] * padded :].any()


def test_rotated_infinities_and_nans(emulator):
    x = torch.randn(3, 96).half()
    x[1, 40], x[2, 50] = torch.inf, torch.nan
    integers, scale = emulator.quantize_activations(x, 32, 8, (32, 3))
    expected = rotate(x, Rotation(32, 3))
    assert scale[1:].tolist() == [1.0, 1.0]
    torch.testing.assert_close(integers[1:, :96], expected[1:].half(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rotation", "activation_bits"), [((48, 0), 8), ((512, 0), 8), ((64, 0), 8), ((32, 0), 16)])
def test_rotations_that_are_refused(emulator, rotation, activation_bits):
    with pytest.raises(RuntimeError, match="status 1"):
        emulator.quantize_activations(torch.randn(1, 96).half(), 32, activation_bits, rotation)
