"""The compiled CPU kernels, in every instruction set of this processor, against float64 products with the weight."""

import itertools

import pytest
import torch

from tests.nn.cpu_layers import BITS, check, exact, random_layer
from tests.nn.rounding_errors import ROUNDING, error
from transformers_qaig.formats.hadamard import BLOCKS, Rotation
from transformers_qaig.formats.reference import dequantize
from transformers_qaig.kernels import extension

pytestmark = pytest.mark.skipif(not extension.load(), reason=f"no compiled kernels: {extension.why_not()}")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_every_width(isa, bits, sym, activation_bits):
    for group_size, rows in itertools.product((32, 96, -1), (1, 2, 3, 7)):
        layer = random_layer(bits, group_size, sym, activation_bits=activation_bits)
        check(layer, torch.randn(rows, 96))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_many_rows_in_bfloat16(isa, bits, activation_bits):
    """AMX takes bfloat16 as it is from 48 rows on: whole and half pairs of batches, groups that fill no unit."""
    for group_size, in_features, rows in ((32, 96, 47), (32, 96, 48), (48, 336, 50), (-1, 160, 65), (128, 640, 97)):
        layer = random_layer(bits, group_size, rows % 2 == 0, 72, in_features, activation_bits=activation_bits)
        check(layer, torch.randn(rows, in_features).bfloat16())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_token_alone_and_among_others(isa, bits, dtype):
    """The same result with 8-bit activations, by gemv and gemm."""
    layer = random_layer(bits, 64, False, 72, 320, activation_bits=8)
    x = torch.randn(50, 320).to(dtype)
    y = layer(x)
    for first, last in ((0, 1), (1, 3), (3, 7), (7, 12), (12, 29)):
        assert torch.equal(layer(x[first:last]), y[first:last])


@pytest.mark.parametrize("bits", BITS)
def test_as_exact_as_a_bfloat16_product(isa, bits):
    """Of the dequantized weight, with sums in float64."""
    layer = random_layer(bits, 64, False, 256, 512, bias=False)
    x = torch.randn(64, 512).bfloat16()
    weight = dequantize(layer._weight(), torch.bfloat16).double()
    product = torch.nn.functional.linear(x.double(), weight).bfloat16()
    assert error(layer(x), exact(layer, x)) < 1.01 * error(product, exact(layer, x))


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_widths_groups_and_rows(isa, bits, dtype, activation_bits):
    for group_size, sym in itertools.product((32, 64, 128, -1), (False, True)):
        layer = random_layer(bits, group_size, sym, 72, 384, dtype=dtype, activation_bits=activation_bits)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 31, 64, 97, 130):
            check(layer, torch.randn(rows, 384).to(dtype))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_rotated_input(isa, block, activation_bits, dtype):
    """To 8 bits in particular: one bit of difference to `hadamard.rotate` would now and then be a whole step of x."""
    options = {"activation_bits": activation_bits, "dtype": dtype}
    for group_size, in_features, rows in ((-1, 768, 1), (32, 256, 3), (768, 768, 11), (64, 1536, 4)):
        layer = random_layer(4, group_size, in_features=in_features, rotation=Rotation(block, 11), **options)
        x = torch.randn(rows, in_features)
        x[:, 3] *= 100
        check(layer, x.to(dtype))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"),
    [(1, 32, -1), (15, 33, -1), (17, 114, 57), (33, 228, 114), (16, 36, 36), (31, 1, -1), (50, 1100, 275)],
)
def test_ragged_shapes(isa, bits, out_features, in_features, group_size):
    layer = random_layer(bits, group_size, out_features=out_features, in_features=in_features)
    for rows in (1, 3, 11):
        check(layer, torch.randn(rows, in_features))


@pytest.mark.parametrize("shape", [(0, 96), (2, 0, 96), (96,), (2, 3, 96)])
def test_leading_dimensions(isa, shape):
    layer, x = random_layer(3), torch.randn(shape)
    assert layer(x).shape == (*shape[:-1], 40)
    check(layer, x)


def test_strided_input(isa):
    layer, x = random_layer(3), torch.randn(96, 5)
    assert error(layer(x.t()), exact(layer, x.t())) < 1e-6
    assert error(layer(x.t()[::2]), exact(layer, x.t()[::2])) < 1e-6


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_dtypes_mix(isa, scale_dtype, dtype):
    check(random_layer(3, dtype=scale_dtype, out_features=50), torch.randn(3, 96).to(dtype))


def test_more_rows_than_are_computed_at_once(isa):
    check(random_layer(4, out_features=16), torch.randn(1100, 96))


@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_many_layers_of_one_input(isa, activation_bits, rows):
    layers = [
        random_layer(2, 32),
        random_layer(3, 96, sym=True, out_features=17, bias=False),
        random_layer(8, 32, out_features=64, dtype=torch.bfloat16),
        random_layer(5, -1, out_features=5),
        random_layer(4, 32, out_features=24, rotation=Rotation(32, 1)),
        random_layer(4, 32, out_features=24, rotation=Rotation(32, 2)),
        random_layer(4, 32, out_features=24, rotation=Rotation(16, 1)),
    ]
    x = torch.randn(2, rows, 96)
    arguments = (
        [layer.weight_packed for layer in layers],
        [layer.weight_scale for layer in layers],
        [layer.weight_zero_point for layer in layers],
        [layer.bias for layer in layers],
        [layer.rotation.block if layer.rotation else 0 for layer in layers],
        [layer.rotation.seed if layer.rotation else 0 for layer in layers],
        [layer.out_features for layer in layers],
        [layer.bits for layer in layers],
        [layer.group_size for layer in layers],
        activation_bits,
        0,
    )
    results = torch.ops.qaig.linear_many(x, *arguments)
    for layer, result in zip(layers, results, strict=True):
        layer.activation_bits = activation_bits
        assert torch.equal(result, layer(x))
    torch.library.opcheck(torch.ops.qaig.linear_many.default, (x, *arguments))
    with pytest.raises(RuntimeError, match="one entry per layer"):
        torch.ops.qaig.linear_many(x, *arguments[:8], [32], *arguments[9:])
