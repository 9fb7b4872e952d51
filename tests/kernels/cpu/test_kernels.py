"""Kernels that this processor may lack, emulated: to the bit as the portable ones, and near the truth."""

import itertools
from pathlib import Path

import pytest
import torch

from tests.kernels.cpu.harness import Call, Harness, Result
from tests.nn.cpu_layers import exact, random_layer
from tests.nn.rounding_errors import ROUNDING, error
from transformers_qaig.formats.hadamard import BLOCKS, Rotation
from transformers_qaig.formats.reference import dequantize
from transformers_qaig.nn import QAIGLinear

BITS = (2, 3, 4, 8)
DTYPES = tuple(ROUNDING)


def fused(results: dict[str, Result]) -> dict[str, Result]:
    """Those whose results are equal: on x86-64 portable C++ has no fused multiplication and addition."""
    return {isa: result for isa, result in results.items() if isa != "portable" or "avx2" not in results}


def check(harness: Harness, calls: list[Call], folder: Path) -> None:
    """Instruction sets and layouts agree to the bit; the result is as near to the exact product as the dtype allows."""
    for call, results in zip(calls, harness.run(calls, folder), strict=True):
        for i, (layer, x) in enumerate(call.layers):
            expected, first = exact(layer, x), next(iter(fused(results).values())).y[0][i]
            assert error(results["portable"].y[0][i], expected) < ROUNDING[x.dtype], (layer, x.shape)
            assert error(first, expected) < ROUNDING[x.dtype], (layer, x.shape)
            for isa, result in fused(results).items():
                for layout, products in enumerate(result.y):
                    assert torch.equal(products[i], first), (isa, layout, layer, x.shape)
            for isa, result in results.items():
                for weight in result.weights[i : i + 1]:
                    assert torch.equal(weight, dequantize(layer._weight(), torch.float32)), (isa, layer)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width(harness, bits, tmp_path):
    """Every number of rows that a batch can have, and more than one batch."""
    cases = itertools.product((1, 2, 3, 4, 5, 6, 7, 8, 9, 21), (16, 8), (False, True))
    dtypes, groups = itertools.cycle(DTYPES), itertools.cycle((32, 96, 144, -1))
    calls = []
    for (rows, activation_bits, sym), dtype, group_size in zip(cases, dtypes, groups, strict=False):
        layer = random_layer(bits, group_size, sym, 40, 288, activation_bits=activation_bits)
        calls.append(Call([(layer, torch.randn(rows, 288).to(dtype))], dequantize=rows == 1))
    check(harness, calls, tmp_path)


@pytest.mark.parametrize("bits", BITS)
def test_ragged_shapes(harness, bits, tmp_path):
    shapes = [(1, 32, -1), (15, 33, -1), (17, 114, 57), (33, 228, 114), (16, 36, 36), (31, 1, -1), (50, 550, 275)]
    calls = [
        Call([(random_layer(bits, group, False, n, k), torch.randn(rows, k))], dequantize=True)
        for (n, k, group), rows in itertools.product(shapes, (1, 3, 11))
    ]
    check(harness, calls, tmp_path)


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_many_output_channels(harness, activation_bits, tmp_path):
    calls = [
        Call([(random_layer(bits, 96, False, 1000, 288, activation_bits=activation_bits), torch.randn(rows, 288))])
        for bits, rows in itertools.product(BITS, (1, 4, 9))
    ]
    check(harness, calls, tmp_path)


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_rotated_input(harness, activation_bits, tmp_path):
    calls = []
    for block, dtype, rows in itertools.product(BLOCKS, DTYPES, (1, 6)):
        layer = random_layer(4, 256, in_features=512, rotation=Rotation(block, 11), activation_bits=activation_bits)
        x = torch.randn(rows, 512)
        x[:, 3] *= 100
        calls.append(Call([(layer, x.to(dtype))]))
    check(harness, calls, tmp_path)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8])
def test_outliers_take_three_planes(harness, rows, tmp_path):
    calls = []
    for bits, outlier in itertools.product(BITS, (300.0, 1e4)):
        x = torch.randn(rows, 256).bfloat16()
        x[:, 5] = outlier
        calls.append(Call([(random_layer(bits, 128, in_features=256), x)]))
    check(harness, calls, tmp_path)


@pytest.mark.parametrize("bits", BITS)
def test_largest_sums_do_not_overflow(harness, bits, tmp_path):
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
    check(harness, calls, tmp_path)


@pytest.mark.parametrize("bits", BITS)
def test_many_rows_in_bfloat16(harness, bits, tmp_path):
    """AMX multiplies dequantized weights then, and rounds otherwise than the others."""
    calls = [
        Call([(random_layer(bits, group, sym, 72, k), torch.randn(rows, k).bfloat16())])
        for group, k, rows, sym in (
            (32, 96, 48, True),
            (48, 336, 50, False),
            (-1, 160, 65, True),
            (128, 640, 97, False),
        )
    ]
    for call, results in zip(calls, harness.run(calls, tmp_path), strict=True):
        ((layer, x),) = call.layers
        for isa, result in results.items():
            packed, prepared = (products[0] for products in result.y)
            assert error(packed, exact(layer, x)) < ROUNDING[x.dtype], (isa, layer)
            assert torch.equal(packed, prepared), (isa, layer)


def test_experts(harness, tmp_path):
    """Layers with an x each, as `experts_linear` calls them, and the same result as one by one."""
    rows, bits = (1, 3, 9, 2, 5, 1), (2, 4, 3, 8, 4, 5)
    layers = [(random_layer(b, 32, bias=False), torch.randn(m, 96).bfloat16()) for m, b in zip(rows, bits, strict=True)]
    calls = [Call(layers), *(Call([each]) for each in layers)]
    check(harness, calls, tmp_path)
    together, *alone = harness.run(calls, tmp_path)
    for i, each in enumerate(alone):
        for isa, result in each.items():
            assert torch.equal(together[isa].y[0][i], result.y[0][0])


def test_extreme_inputs(harness, tmp_path):
    """Rows of zeros, of almost nothing, and rows that only float32 can hold."""
    calls = []
    for rows, value in itertools.product((1, 4, 9), (0.0, 1e-25, 1e32, torch.inf)):
        x = torch.randn(rows, 96)
        x[-1] = value
        calls.append(Call([(random_layer(3), x)]))
    for call, results in zip(calls, harness.run(calls, tmp_path), strict=True):
        ((layer, x),), y = call.layers, next(iter(fused(results).values())).y[0][0]
        for row, expected in zip(y, exact(layer, x), strict=True):
            assert torch.equal(row.isfinite(), expected.isfinite())
            assert not row.isfinite().all() or error(row, expected) < ROUNDING[x.dtype]
        for result in fused(results).values():
            torch.testing.assert_close(result.y[0][0], y, rtol=0, atol=0, equal_nan=True)
