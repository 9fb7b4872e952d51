"""The compiled CPU kernels, in every instruction set of this processor, against float64 products with the weight."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.nn.rounding_errors import ROUNDING, error
from transformers_qaig.formats import reference
from transformers_qaig.formats.hadamard import BLOCKS, Rotation, rotate
from transformers_qaig.formats.reference import dequantize, round_activations
from transformers_qaig.kernels import extension
from transformers_qaig.nn import QAIGLinear

pytestmark = pytest.mark.skipif(not extension.load(), reason=f"no compiled kernels: {extension.why_not()}")

BITS = (2, 3, 4, 8)


def random_layer(
    bits, group_size=32, sym=False, out_features=40, in_features=96, bias=True, dtype=torch.float32, **options
):
    groups = 1 if group_size == -1 else in_features // group_size
    return QAIGLinear.from_codes(
        torch.randint(0, 2**bits, (out_features, in_features), dtype=torch.uint8),
        ((torch.rand(out_features, groups) + 0.1) * torch.randn(out_features, groups).sign()).to(dtype),
        None if sym else torch.randint(0, 2**bits, (out_features, groups), dtype=torch.uint8),
        torch.randn(out_features).to(dtype) if bias else None,
        bits=bits,
        group_size=group_size,
        **options,
    )


def exact(layer: QAIGLinear, x: Tensor) -> Tensor:
    """What the layer stands for, in float64."""
    if layer.rotation is not None:
        x = rotate(x, layer.rotation)
    if layer.activation_bits == 8:
        x = round_activations(x)
    bias = None if layer.bias is None else layer.bias.double()
    weight = dequantize(layer._weight(), torch.float64)  # in the basis of the rotated x
    return torch.nn.functional.linear(x.double(), weight, bias)


def check(layer: QAIGLinear, x: Tensor) -> None:
    """Both layouts, to the bit the same and as near to the truth as the dtype allows."""
    expected = exact(layer, x)
    unprepared = layer(x)
    assert unprepared.dtype == x.dtype
    assert error(unprepared, expected) < ROUNDING[x.dtype]
    if layer.prepare():
        assert torch.equal(layer(x), unprepared)
        layer.unprepare()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_every_width(isa, bits, sym, activation_bits):
    for group_size, rows in itertools.product((32, 96, -1), (1, 2, 3, 7)):
        layer = random_layer(bits, group_size, sym, activation_bits=activation_bits)
        check(layer, torch.randn(rows, 96))


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


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"),
    [(1, 32, -1), (15, 33, -1), (17, 114, 57), (33, 228, 114), (16, 36, 36), (31, 1, -1), (50, 1100, 275)],
)
def test_ragged_shapes(isa, bits, out_features, in_features, group_size):
    layer = random_layer(bits, group_size, out_features=out_features, in_features=in_features)
    for rows in (1, 3, 11):
        check(layer, torch.randn(rows, in_features))


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


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_bits_do_not_depend_on_threads(isa, rows):
    layer, x = random_layer(3, 64, out_features=1000, in_features=1024), torch.randn(rows, 1024).bfloat16()
    layer.prepare()
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


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [False, True])
def test_rows_are_dequantized_to_the_bit(isa, bits, sym):
    for in_features, group_size in ((96, 32), (96, -1), (80, 20), (104, 104), (72, 36)):
        layer = random_layer(bits, group_size, sym, in_features=in_features)
        expected = dequantize(layer._weight(), torch.float32)  # plain torch: the layer is not prepared
        assert layer.prepare()
        for start, stop in ((0, 40), (5, 33), (16, 32), (39, 40)):
            assert torch.equal(torch.ops.qaig.dequantize(*layer._weight(), start, stop), expected[start:stop])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [False, True])
def test_columns_are_dequantized_to_the_bit(isa, bits, sym):
    for in_features, group_size in ((96, 32), (96, -1), (80, 20), (104, 104), (72, 36)):
        layer = random_layer(bits, group_size, sym, in_features=in_features)
        layer.weight_scale[3] = 1e-39  # a denormal number in bfloat16
        expected = dequantize(layer._weight(), torch.bfloat16)  # plain torch: the layer is not prepared
        for _ in range(2):
            for start, stop in ((0, in_features), (5, 33), (32, 64), (in_features - 1, in_features), (7, 7)):
                found = torch.ops.qaig.dequantize_columns(*layer._weight(), start, stop)
                assert torch.equal(found, expected[:, start:stop])
            layer.prepare()


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_in_bfloat16_is_rounded_once(isa, bits, monkeypatch):
    """Whatever a processor multiplies fastest: panels of 32 columns, and a product in bfloat16."""
    monkeypatch.setattr(reference, "product_dtype", lambda x: x.dtype)
    monkeypatch.setattr("transformers_qaig.formats.packing._CHUNK_CODES", 1)
    layer = random_layer(bits, in_features=160)
    grad = torch.randn(9, 40).bfloat16()
    weight = dequantize(layer._weight(), torch.bfloat16)
    assert layer.prepare()
    found = reference.linear_grad_input(grad, layer._weight(), None)
    assert error(found, grad.double() @ weight.double()) < ROUNDING[torch.bfloat16]
