"""The compiled CPU kernels with extreme numbers: infinities, outliers, sums and scales at their limits."""

import itertools

import pytest
import torch

from tests.nn.cpu_layers import BITS, check, exact, random_layer
from tests.nn.rounding_errors import ROUNDING, error
from transformers_qaig.formats.hadamard import Rotation
from transformers_qaig.kernels import extension
from transformers_qaig.nn import QAIGLinear

pytestmark = pytest.mark.skipif(not extension.load(), reason=f"no compiled kernels: {extension.why_not()}")


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_infinities_and_nans_of_a_rotated_input(isa, activation_bits):
    layer = random_layer(4, rotation=Rotation(32, 0), activation_bits=activation_bits)
    for value in (torch.inf, torch.nan, 3e38):
        x = torch.randn(3, 96)
        x[1, 40:42] = value
        out = layer(x)
        expected = exact(layer, x).float()
        assert torch.equal(out.isfinite(), expected.isfinite())
        assert torch.equal(out.isnan(), expected.isnan())
        assert out[::2].isfinite().all()
        assert error(out[::2], exact(layer, x[::2])) < 1e-6


@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("bits", BITS)
def test_no_worse_than_a_bfloat16_product(isa, rows, bits):
    layer = random_layer(bits, 128, out_features=64, in_features=1024, bias=False, dtype=torch.bfloat16)
    x = torch.randn(rows, 1024).bfloat16()
    dense = torch.nn.functional.linear(x, layer.dequantize(torch.bfloat16))
    assert error(layer(x), exact(layer, x)) <= error(dense, exact(layer, x))


@pytest.mark.parametrize("outlier", [300.0, 1e4])
@pytest.mark.parametrize("rows", [1, 6])
def test_an_outlier_does_not_drown_its_neighbours(isa, outlier, rows):
    """Where the outlier's own weight is zero nothing of it is left, and its neighbours must be as exact as ever."""
    layer = random_layer(2, 128, sym=True, out_features=64, in_features=256, bias=False)
    codes = torch.randint(0, 4, (64, 256), dtype=torch.uint8)
    codes[:, 5] = 2  # the zero point
    layer = QAIGLinear.from_codes(codes, layer.weight_scale, None, bits=2, group_size=128)
    x = torch.randn(rows, 256).bfloat16()
    x[:, 5] = outlier
    dense = torch.nn.functional.linear(x, layer.dequantize(torch.bfloat16))
    assert error(layer(x), exact(layer, x)) <= 1.01 * error(dense, exact(layer, x))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_largest_sums_do_not_overflow(isa, bits, activation_bits):
    """One group of 8,192 channels, every code and every activation at its largest and of one sign."""
    for sign, zero in itertools.product((1, -1), (0, 2**bits - 1)):
        layer = QAIGLinear.from_codes(
            torch.full((20, 8192), 2**bits - 1 - zero, dtype=torch.uint8),
            torch.full((20, 1), 0.01),
            torch.full((20, 1), zero, dtype=torch.uint8),
            bits=bits,
            group_size=-1,
            activation_bits=activation_bits,
        )
        for rows in (1, 5):
            check(layer, torch.full((rows, 8192), sign * 1.9921875))
            check(layer, torch.full((rows, 8192), sign * 1.9921875).bfloat16())


@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_extreme_inputs(isa, activation_bits, rows):
    layer = random_layer(3, 32, activation_bits=activation_bits)
    for scale in (0.0, 1e-37, 1e-25, 1e-6, 1e25, 1e32):
        x = torch.randn(rows, 96) * scale
        torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=1e-5, atol=1e-5 * max(scale, 1e-4))
    x = torch.randn(rows, 96)
    x[:, :32] *= 1e-20  # a group far below the others
    x[:, 32:64] = 0
    check(layer, x)


@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_infinities_and_nans_go_through_as_in_torch(isa, rows, dtype, activation_bits):
    layer = random_layer(4, 32, sym=True, dtype=dtype, activation_bits=activation_bits)
    for value in (torch.inf, -torch.inf, torch.nan):
        x = torch.randn(rows, 96).to(dtype)
        x[-1, 40] = value
        out, expected = layer(x), torch.nn.functional.linear(x, layer.dequantize(dtype), layer.bias)
        assert torch.equal(out[-1].isnan(), expected[-1].isnan())
        assert torch.equal(out[-1].isinf(), expected[-1].isinf())
        assert torch.equal(out[-1].sign().nan_to_num(), expected[-1].sign().nan_to_num())
        assert out[:-1].isfinite().all()
        assert rows == 1 or error(out[:-1], exact(layer, x[:-1])) < ROUNDING[dtype]


def test_groups_of_zeros(isa):
    codes = torch.randint(0, 8, (40, 96), dtype=torch.uint8)
    scale = torch.rand(40, 3)
    scale[:, 1] = 0
    zero = torch.randint(0, 8, (40, 3), dtype=torch.uint8)
    codes[:, 64:] = zero[:, 2:]  # weights that are exactly zero
    layer = QAIGLinear.from_codes(codes, scale, zero, bits=3, group_size=32)
    x = torch.randn(5, 96)
    check(layer, x)
    assert torch.equal(layer(torch.zeros(2, 96)), torch.zeros(2, 40))
    x[:, :32] = 0
    assert torch.equal(layer(x), torch.zeros(5, 40))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_bits_do_not_depend_on_threads(isa, rows):
    layer, x = random_layer(3, 64, out_features=1000, in_features=1024), torch.randn(rows, 1024).bfloat16()
    layer.to_kernel_layout()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
