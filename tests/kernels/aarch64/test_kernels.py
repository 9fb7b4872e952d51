"""The kernels for aarch64, on an emulated processor: every level to the bit as the portable one, and near the truth.

`make cross` compiles the harness, and sets QAIG_AARCH64_HARNESS to its path.
"""

import itertools

import pytest
import torch

from tests.kernels.aarch64.cases import HARNESS, LEVELS, Call, emulate, run
from tests.nn.cpu_layers import exact, random_layer
from tests.nn.rounding_errors import ROUNDING, error
from transformers_qaig.formats.hadamard import BLOCKS, Rotation
from transformers_qaig.formats.reference import dequantize
from transformers_qaig.nn import QAIGLinear

pytestmark = pytest.mark.skipif(HARNESS is None, reason="`make cross` runs it")

BITS = (2, 3, 4, 8)
DTYPES = tuple(ROUNDING)


def check(calls: list[Call], folder) -> None:
    """Levels and layouts agree to the bit; the result is as near to the exact product as the dtype allows."""
    for call, levels in zip(calls, run(calls, folder), strict=True):
        for i, (layer, x) in enumerate(call.layers):
            expected, first = exact(layer, x), levels[0].y[0][i]
            assert error(first, expected) < ROUNDING[x.dtype], (layer, x.shape)
            for name, level in zip(LEVELS["max"], levels, strict=True):
                for layout, products in enumerate(level.y):
                    assert torch.equal(products[i], first), (name, layout, layer, x.shape)
                for weight in level.weights[i : i + 1]:
                    assert torch.equal(weight, dequantize(layer._weight(), torch.float32)), (name, layer)


@pytest.mark.parametrize(("cpu", "levels"), LEVELS.items())
def test_the_best_level_is_chosen(cpu, levels):
    best, used, features, wrong = emulate(cpu).split("\n")[:4]
    assert (best, used, wrong) == (levels[-1], levels[-1], "")
    assert features.split() == ["asimddp", "i8mm"][: len(levels) - 1]


def test_the_environment_chooses_a_level():
    for level in LEVELS["max"]:
        assert emulate("max", QAIG_CPU_ISA=level).split("\n")[:2] == ["neon-i8mm", level]
    assert "its best is neon-dotprod" in emulate("neoverse-n1", QAIG_CPU_ISA="neon-i8mm")
    assert "one of portable, neon-dotprod, neon-i8mm" in emulate("max", QAIG_CPU_ISA="avx2")


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width(bits, tmp_path):
    """Every number of rows that a batch can have, and more than one batch."""
    cases = itertools.product((1, 2, 3, 4, 5, 6, 7, 8, 9, 21), (16, 8), (False, True))
    dtypes, groups = itertools.cycle(DTYPES), itertools.cycle((32, 96, 144, -1))
    calls = []
    for (rows, activation_bits, sym), dtype, group_size in zip(cases, dtypes, groups, strict=False):
        layer = random_layer(bits, group_size, sym, 40, 288, activation_bits=activation_bits)
        calls.append(Call([(layer, torch.randn(rows, 288).to(dtype))], dequantize=rows == 1))
    check(calls, tmp_path)


@pytest.mark.parametrize("bits", BITS)
def test_ragged_shapes(bits, tmp_path):
    shapes = [(1, 32, -1), (15, 33, -1), (17, 114, 57), (33, 228, 114), (16, 36, 36), (31, 1, -1), (50, 550, 275)]
    calls = [
        Call([(random_layer(bits, group, False, n, k), torch.randn(rows, k))], dequantize=True)
        for (n, k, group), rows in itertools.product(shapes, (1, 3, 11))
    ]
    check(calls, tmp_path)


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_many_output_channels(activation_bits, tmp_path):
    calls = [
        Call([(random_layer(bits, 96, False, 1000, 288, activation_bits=activation_bits), torch.randn(rows, 288))])
        for bits, rows in itertools.product(BITS, (1, 4, 9))
    ]
    check(calls, tmp_path)


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_rotated_input(activation_bits, tmp_path):
    calls = []
    for block, dtype, rows in itertools.product(BLOCKS, DTYPES, (1, 6)):
        layer = random_layer(4, 256, in_features=512, rotation=Rotation(block, 11), activation_bits=activation_bits)
        x = torch.randn(rows, 512)
        x[:, 3] *= 100
        calls.append(Call([(layer, x.to(dtype))]))
    check(calls, tmp_path)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8])
def test_outliers_take_three_planes(rows, tmp_path):
    calls = []
    for bits, outlier in itertools.product(BITS, (300.0, 1e4)):
        x = torch.randn(rows, 256).bfloat16()
        x[:, 5] = outlier
        calls.append(Call([(random_layer(bits, 128, in_features=256), x)]))
    check(calls, tmp_path)


@pytest.mark.parametrize("bits", BITS)
def test_largest_sums_do_not_overflow(bits, tmp_path):
    calls = []
    for sign, zero, activation_bits in itertools.product((1, -1), (0, 2**bits - 1), (16, 8)):
        layer = QAIGLinear.from_codes(
            torch.full((20, 2048), 2**bits - 1 - zero, dtype=torch.uint8),
            torch.full((20, 1), 0.01),
            torch.full((20, 1), zero, dtype=torch.uint8),
            bits=bits,
            group_size=-1,
            activation_bits=activation_bits,
        )
        x = torch.full((1, 2048), sign * 1.9921875)
        calls += [Call([(layer, x)]), Call([(layer, x.bfloat16())]), Call([(layer, x.expand(5, -1))])]
    check(calls, tmp_path)


def test_experts(tmp_path):
    """Layers with an x each, as `experts_linear` calls them, and the same result as one by one."""
    rows, bits = (1, 3, 9, 2, 5, 1), (2, 4, 3, 8, 4, 5)
    layers = [(random_layer(b, 32, bias=False), torch.randn(m, 96).bfloat16()) for m, b in zip(rows, bits, strict=True)]
    calls = [Call(layers), *(Call([each]) for each in layers)]
    check(calls, tmp_path)
    together, *alone = run(calls, tmp_path)
    for i, each in enumerate(alone):
        assert torch.equal(together[-1].y[0][i], each[-1].y[0][0])


def test_extreme_inputs(tmp_path):
    """Rows of zeros, of almost nothing, and rows that only float32 can hold."""
    calls = []
    for rows, value in itertools.product((1, 4, 9), (0.0, 1e-25, 1e32, torch.inf)):
        x = torch.randn(rows, 96)
        x[-1] = value
        calls.append(Call([(random_layer(3), x)]))
    for call, levels in zip(calls, run(calls, tmp_path), strict=True):
        ((layer, x),), y = call.layers, levels[0].y[0][0]
        for row, expected in zip(y, exact(layer, x), strict=True):
            assert torch.equal(row.isfinite(), expected.isfinite())
            assert not row.isfinite().all() or error(row, expected) < ROUNDING[x.dtype]
        for level in levels:
            torch.testing.assert_close(level.y[0][0], y, rtol=0, atol=0, equal_nan=True)
