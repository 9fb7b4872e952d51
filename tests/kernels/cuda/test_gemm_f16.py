"""The 16-bit gemm (csrc/cuda/kernels/gemm_f16.cuh) on the emulator, against float64 products with the weight."""

import itertools
from functools import partial

import pytest
import torch

from tests.kernels.cuda import gemm_cases, products
from tests.kernels.cuda.products import BITS, DTYPES, ROUNDING, error, exact, in_checkpoint_layout
from tools.emulator.compilation import COMPILER
from tools.emulator.weights import make_weight, random_weight
from transformers_qaig.formats import reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


check = partial(products.check, kernel="gemm_f16")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sym", [False, True])
def test_every_width(emulator, bits, dtype, sym):
    for x, w in gemm_cases.every_width(emulator, bits, dtype, sym):
        check(emulator, x, [w])


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_sweep(emulator, bits, dtype, activation_bits):
    for x, w in gemm_cases.sweep(emulator, bits, dtype):
        check(emulator, x, [w], activation_bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("out_features", "in_features", "group_size"), gemm_cases.RAGGED)
def test_ragged_shapes(emulator, bits, out_features, in_features, group_size):
    for activation_bits, dtype, rows in ((16, torch.float16, 19), (8, torch.bfloat16, 65)):
        w = random_weight(bits, out_features, in_features, group_size, dtype=dtype)
        check(emulator, torch.randn(rows, in_features).to(dtype), [w], activation_bits)


def test_results_do_not_depend_on_timing(emulator):
    """Each launch leaves the semaphores as the next one needs them, too."""
    x = torch.randn(20, 1152).bfloat16()
    w = random_weight(3, 200, 1152, 128, dtype=torch.bfloat16)
    gemm_cases.check_order_does_not_matter(emulator, lambda: check(emulator, x, [w], launches=2), 3, 4)


@pytest.mark.parametrize("processors", [1, 2, 5])
def test_many_layers(emulator, processors):
    """Blocks that have parts of several layers and output tiles."""
    emulator.set_processors(processors)
    weights = [
        random_weight(4, 64, 512, 32, bias=torch.float16),
        random_weight(4, 200, 512, 128, sym=True, dtype=torch.bfloat16),
        random_weight(4, 17, 512, -1, bias=torch.float32),
        random_weight(4, 300, 512, 64, dtype=torch.bfloat16, bias=torch.bfloat16),
    ]
    check(emulator, torch.randn(66, 512).half(), weights, launches=2)
    check(emulator, torch.randn(20, 512).bfloat16(), weights[2:3] * 8, activation_bits=8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_worse_than_a_dense_product(emulator, bits, dtype):
    w = random_weight(bits, 64, 1024, 128, dtype=dtype)
    x = torch.randn(24, 1024).to(dtype)
    dense = torch.nn.functional.linear(x, reference.dequantize(in_checkpoint_layout(w), dtype))
    (y,) = emulator.matmul(x, [w], kernel="gemm_f16")
    assert error(y, exact(w, x)) <= 1.001 * error(dense, exact(w, x))


@pytest.mark.parametrize("bits", [2, 8])
def test_an_outlier_does_not_drown_its_neighbours(emulator, bits):
    """Where the outlier's own weight is zero nothing of it is left, and its neighbours must be as exact as ever."""
    zero = torch.randint(0, 2**bits, (64, 2), dtype=torch.uint8)
    codes = torch.randint(0, 2**bits, (64, 256), dtype=torch.uint8)
    codes[:, 5] = zero[:, 0]
    w = make_weight(codes, torch.rand(64, 2).bfloat16() + 0.1, zero, bits, 128)
    x = torch.randn(17, 256).bfloat16()
    x[:, 5] = 1e4
    dense = torch.nn.functional.linear(x, reference.dequantize(in_checkpoint_layout(w), torch.bfloat16))
    (y,) = emulator.matmul(x, [w], kernel="gemm_f16")
    assert error(y, exact(w, x)) <= 1.01 * error(dense, exact(w, x))


@pytest.mark.parametrize("bits", [2, 8])
def test_largest_sums_do_not_overflow(emulator, bits):
    for sign, zero in itertools.product((1, -1), (0, 2**bits - 1)):
        w = make_weight(
            torch.full((20, 2048), 2**bits - 1 - zero, dtype=torch.uint8),
            torch.full((20, 1), 0.01).bfloat16(),
            torch.full((20, 1), zero, dtype=torch.uint8),
            bits,
            -1,
        )
        check(emulator, torch.full((2, 2048), sign * 1.9921875).bfloat16(), [w])


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nans_go_through_as_in_torch(emulator, dtype):
    """And reach no other row, be it of the same tile, and nothing that is not there."""
    w = random_weight(4, 40, 96, 32, sym=True, dtype=dtype)
    for value in (torch.inf, -torch.inf, torch.nan):
        x = torch.randn(18, 96).to(dtype)
        x[-1, 40] = value
        (out,) = emulator.matmul(x, [w], kernel="gemm_f16")
        expected = torch.nn.functional.linear(x, reference.dequantize(in_checkpoint_layout(w), dtype))
        assert torch.equal(out[-1].isnan(), expected[-1].isnan())
        assert torch.equal(out[-1].isinf(), expected[-1].isinf())
        assert error(out[:-1], exact(w, x[:-1])) < ROUNDING[dtype]


def test_launches_that_are_refused(emulator):
    x = torch.randn(20, 64).half()
    with pytest.raises(RuntimeError, match="status 1"):
        emulator.matmul(x, [random_weight(4, 64, 64), random_weight(3, 64, 64)], kernel="gemm_f16")
    with pytest.raises(RuntimeError, match="status 1"):
        emulator.matmul(x[:0], [random_weight(4, 64, 64)], kernel="gemm_f16")
    emulator.set_capability(75)
    try:
        with pytest.raises(RuntimeError, match="status 2"):
            emulator.matmul(x, [random_weight(4, 64, 64)], kernel="gemm_f16")
    finally:
        emulator.set_capability(86)
