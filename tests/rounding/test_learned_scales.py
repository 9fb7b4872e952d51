"""Scales that are learned: from where they start, how far they go, and what stays."""

import pytest
import torch
from torch import Tensor

from tests import seeds
from tests.tolerance import rounding
from transformers_qaig.rounding.learned import RANGE_BOUNDS
from transformers_qaig.rounding.learned_scales import LearnableFactors, LearnableScales
from transformers_qaig.rounding.quant_grid import QuantizedWeight, minmax_grid

N, K = 6, 32
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = [(2, 8, False), (3, 8, True), (8, -1, False), (4, -1, True)]


def rounded(bits: int, group_size: int, sym: bool, dtype: torch.dtype = torch.bfloat16) -> QuantizedWeight:
    weight = torch.randn(N, K, generator=seeds.generator())
    grid = minmax_grid(weight, bits=bits, group_size=group_size, sym=sym, storage_dtype=dtype, include_zero=True)
    return QuantizedWeight(grid, grid.encode(weight))


def scales(dtype: torch.dtype) -> Tensor:
    return (torch.rand(N, 4, generator=seeds.generator()) + 0.1).to(dtype).float()


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_start_at_the_scales_and_stay_what_the_dtype_holds(dtype: torch.dtype) -> None:
    scale = scales(dtype)
    soft = LearnableFactors(scale, dtype)
    assert torch.equal(soft(), scale)
    for _ in range(5):
        soft().backward(torch.randn(N, 4, generator=seeds.generator(1)))
        soft.move(0.03)
    found = soft.result()
    assert not found.requires_grad
    assert torch.equal(found, soft())
    assert torch.equal(found, found.to(dtype).float())
    assert not torch.equal(found, scale)


@pytest.mark.parametrize("direction", [-1, 1])
def test_factors_end_at_their_bounds(direction: int) -> None:
    scale = scales(torch.float32)
    soft = LearnableFactors(scale, torch.float32)
    for _ in range(20):
        soft().backward(torch.full((N, 4), float(direction)))
        soft.move(0.1)
    bound = RANGE_BOUNDS[0] if direction > 0 else RANGE_BOUNDS[1]
    torch.testing.assert_close(soft.result(), scale * bound, rtol=1e-6, atol=0)


def test_a_step_goes_against_the_gradient_by_its_size() -> None:
    """Adam's first step is its learning rate, whatever the gradient's size."""
    scale = scales(torch.float32)
    soft = LearnableFactors(scale, torch.float32)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    soft().backward(signs * 1e3 * torch.ones(N, 4))
    soft.move(0.01)
    torch.testing.assert_close(soft.result() / scale, (1 - 0.01 * signs).expand(N, 4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing(value: float) -> None:
    scale = scales(torch.float32)
    soft = LearnableFactors(scale, torch.float32)
    gradient = torch.zeros(N, 4)
    gradient[2, 1] = value
    soft().backward(gradient)
    soft.move(0.1)
    assert torch.equal(soft.result(), scale)


@pytest.mark.parametrize(("bits", "group_size", "sym"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_starts_as_it_was_rounded(bits: int, group_size: int, sym: bool, dtype: torch.dtype) -> None:
    start = rounded(bits, group_size, sym, dtype)
    soft = LearnableScales(start, dtype)
    assert torch.equal(soft(), start.values)
    assert torch.equal(soft.result().values, start.values)


@pytest.mark.parametrize(("bits", "group_size", "sym"), CASES)
def test_a_scale_gets_the_gradient_of_its_groups_weights(bits: int, group_size: int, sym: bool) -> None:
    start = rounded(bits, group_size, sym)
    soft = LearnableScales(start, torch.bfloat16)
    gradient = torch.randn(N, K, generator=seeds.generator(1))
    soft().backward(gradient)
    terms = start.grid.grouped((start.values * gradient).double())  # dW/df = W, where a factor f is 1
    magnitude = float(terms.abs().sum(-1).max())
    allowed = rounding(torch.float32, terms.shape[-1] + 4) * magnitude
    torch.testing.assert_close(soft.factor.grad.double(), terms.sum(-1), rtol=0, atol=allowed)


@pytest.mark.parametrize(("bits", "group_size", "sym"), CASES)
def test_only_the_scales_of_a_weight_change(bits: int, group_size: int, sym: bool) -> None:
    start = rounded(bits, group_size, sym)
    soft = LearnableScales(start, torch.bfloat16)
    for _ in range(5):
        soft().backward(torch.randn(N, K, generator=seeds.generator(1)))
        soft.move(0.05)
    found = soft.result()
    assert torch.equal(found.codes, start.codes)
    assert torch.equal(found.grid.zero_point, start.grid.zero_point)
    assert (found.grid.bits, found.grid.sym) == (bits, sym)
    assert not torch.equal(found.grid.scale, start.grid.scale)
    assert torch.equal(found.grid.scale, found.grid.scale.bfloat16().float())
    assert torch.equal(found.values, soft().detach()), "what was judged is what is stored"
    assert not found.grid.scale.requires_grad
