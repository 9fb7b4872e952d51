import math

import pytest
import torch

from tests.tolerance import rounding, unit
from transformers_qaig.rounding.quant_grid import minmax_grid, minmax_grids

BITS = range(2, 9)


def _grid(weight, bits=4, group_size=32, sym=False, storage_dtype=torch.float32, **kwargs):
    return minmax_grid(weight, bits=bits, group_size=group_size, sym=sym, storage_dtype=storage_dtype, **kwargs)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 48, -1])
def test_asymmetric_is_the_papers_formula(bits: int, group_size: int) -> None:
    weight = torch.randn(5, 96)
    grid = _grid(weight, bits, group_size)
    for row in range(5):
        size = 96 if group_size == -1 else group_size
        for group in range(96 // size):
            w = weight[row, group * size : (group + 1) * size]
            scale = (w.max() - w.min()).clamp(min=1e-5) / (2**bits - 1)
            zero = (-torch.round(w.min() / scale)).clamp(0, 2**bits - 1)
            value = ((torch.round(w / scale) + zero).clamp(0, 2**bits - 1) - zero) * scale
            found = grid.quantize(weight)[row, group * size : (group + 1) * size]
            # A value between two codes may go either way.
            same = (found - value).abs() <= rounding(torch.float32, 4) * w.abs().max()
            tie = ((w / scale) % 1 - 0.5).abs() <= rounding(torch.float32, 4) * 2**bits
            assert (same | tie).all()
            assert tie.float().mean() < 0.05


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_decode_to_what_quantize_gives(bits: int, sym: bool, dtype: torch.dtype) -> None:
    weight = torch.randn(7, 64)
    grid = _grid(weight, bits, 32, sym, dtype)
    codes = grid.encode(weight)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 2**bits
    torch.testing.assert_close(grid.decode(codes), grid.quantize(weight), rtol=0, atol=0)
    assert torch.equal(grid.scale, grid.scale.to(dtype).float())


@pytest.mark.parametrize("sym", [False, True])
def test_error_is_at_most_half_a_step(sym: bool) -> None:
    weight = torch.randn(16, 64)
    grid = _grid(weight, 4, 32, sym, include_zero=True)
    error = (grid.quantize(weight) - weight).abs()
    # the zero point is rounded too: at most one step at the range's ends, half a step inside
    assert (error <= grid.scale.repeat_interleave(32, 1) * 1.0001).all()
    assert error.mean() < 0.3 * grid.scale.mean()


def test_a_group_that_is_all_positive_needs_include_zero() -> None:
    weight = torch.rand(1, 32) + 10
    assert (_grid(weight, include_zero=True).quantize(weight) - weight).abs().max() < 0.6
    assert (_grid(weight).quantize(weight) - weight).abs().max() > 5  # the paper's grid clips at zero point 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sym", [False, True])
def test_constant_groups_are_finite(dtype: torch.dtype, sym: bool) -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 1e-12
    value = _grid(weight, sym=sym, storage_dtype=dtype).quantize(weight)
    assert torch.isfinite(value).all()
    assert value.abs().max() < 1e-3


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_and_large_weights_are_rounded_as_well_as_others(bits: int, size: float, dtype: torch.dtype) -> None:
    weight = (torch.rand(8, 64) * 2 - 1) * size
    grid = _grid(weight, bits, 32, storage_dtype=dtype)
    step = 2 * size / (2**bits - 1)
    if dtype == torch.float16:
        step = math.ceil(step * 2**24) / 2**24  # the finest there is; such a model's weights are no finer
    # Half a step each for the code and the zero point, and what rounding the scale makes of the largest code.
    assert (grid.quantize(weight) - weight).abs().max() <= step * (1.01 + 2**bits * unit(dtype))
    assert (grid.quantize(weight) - weight).abs().mean() <= 0.3 * step


def test_shrink_narrows_the_range() -> None:
    weight = torch.randn(3, 64)
    whole, half = _grid(weight), _grid(weight, shrink=0.5)
    torch.testing.assert_close(half.scale, whole.scale / 2)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        _grid(torch.randn(2, 50))
    with pytest.raises(ValueError, match="not finite"):
        _grid(torch.full((2, 32), float("nan")))


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("include_zero", [False, True])
def test_grids_of_several_shrinks_are_those_of_each(sym: bool, include_zero: bool) -> None:
    weight, shrinks = torch.randn(6, 64) + 2, (1.0, 0.8, 0.6)
    settings = {"sym": sym, "include_zero": include_zero, "storage_dtype": torch.bfloat16}
    several = minmax_grids(weight, shrinks, bits=3, group_size=32, **settings)
    for shrink, grid in zip(shrinks, several, strict=True):
        alone = _grid(weight, 3, shrink=shrink, **settings)
        assert torch.equal(grid.scale, alone.scale)
        assert torch.equal(grid.zero_point, alone.zero_point)
        assert (grid.bits, grid.sym) == (3, sym)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_grids_of_several_shrinks_need_finite_weights(bad: float) -> None:
    weight = torch.ones(2, 32)
    weight[1, 7] = bad
    with pytest.raises(ValueError, match="not finite"):
        minmax_grids(weight, (1.0,), bits=4, group_size=32, sym=False, storage_dtype=torch.float32)
