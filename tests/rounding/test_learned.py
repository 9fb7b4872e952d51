import pytest
import torch
from torch import Tensor

from tests import seeds
from tests.tolerance import rounding
from transformers_qaig.rounding.gptq import gptq
from transformers_qaig.rounding.hessian import Hessian, second_moment
from transformers_qaig.rounding.learned import (
    LearnableInit,
    LearnableRounding,
    LearnableVector,
    Learned,
    learn,
)
from transformers_qaig.rounding.learned_scales import LearnableScales
from transformers_qaig.rounding.quant_grid import QuantizedWeight, minmax_grid

N, K, GROUP = 16, 64, 32


def _start(sym: bool = False, storage_dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> LearnableInit:
    weight = torch.randn(N, K, generator=seeds.generator(seed))
    grid = minmax_grid(weight, bits=2, group_size=GROUP, sym=sym, storage_dtype=storage_dtype, include_zero=True)
    return LearnableInit(weight, grid, storage_dtype)


def _learn(start: LearnableInit, steps: int = 40, seed: int = 0, unlearnable: bool = False) -> tuple[Learned, Tensor]:
    """Learn one linear from inputs with correlated channels; x to validate with."""
    generator = seeds.generator(seed)
    mixing = torch.randn(12, K, generator=generator)
    x, held = (torch.randn(200, 12, generator=generator) @ mixing for _ in range(2))

    def batch_loss(weights: dict[str, Tensor], step: int) -> float:
        rows = x[torch.randperm(200, generator=generator)[:64]]
        target = torch.randn(64, N, generator=generator) if unlearnable else rows @ start.weight.T
        loss = (rows @ weights["w"].T - target).square().mean()
        loss.backward()
        return float(loss.detach())

    def validate(weights: dict[str, Tensor]) -> float:
        return float((held @ (weights["w"] - start.weight).T).square().mean())

    return learn({"w": LearnableRounding(start)}, batch_loss, validate, steps=steps, rate=1 / steps), held


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_starts_from_the_rounding_it_is_given(sym: bool, dtype: torch.dtype) -> None:
    start = _start(sym, dtype)
    soft = LearnableRounding(start)
    assert torch.equal(soft.result().codes, start.grid.encode(start.weight))
    assert torch.equal(soft.result().grid.scale, start.grid.scale)
    assert torch.equal(soft.result().grid.zero_point, start.grid.zero_point)
    assert torch.equal(soft(), start.grid.quantize(start.weight))


def test_it_starts_from_gptqs_codes() -> None:
    start = _start()
    hessian = second_moment([(torch.randn(1, 100, 12) @ torch.randn(12, K), torch.ones(1, 100))])
    found = gptq(start.weight, Hessian.of(hessian), start.grid)
    soft = LearnableRounding(LearnableInit(found.source, start.grid, torch.bfloat16))
    assert torch.equal(soft.result().codes, found.codes)


@pytest.mark.parametrize("sym", [False, True])
def test_learning_lowers_the_error_on_data_it_has_not_seen(sym: bool) -> None:
    found, held = _learn(_start(sym))
    assert found.best < 0.5 * found.start
    start, values = _start(sym), found.results["w"].values
    judged = float((held @ (values - start.weight).T).square().mean())
    assert judged == pytest.approx(found.best, rel=rounding(torch.float32, K + held.numel()))


def test_what_was_judged_is_what_is_stored() -> None:
    soft = LearnableRounding(_start())
    generator = seeds.generator(1)
    for step in (0.3, 0.2, 0.1):
        soft().backward(torch.randn(N, K, generator=generator))
        soft.move(step)
    found = soft.result()
    torch.testing.assert_close(found.values, soft().detach(), rtol=0, atol=0)
    assert torch.equal(found.grid.scale, found.grid.scale.bfloat16().float())
    assert soft.offset.abs().max() <= 0.5
    assert found.codes.max() <= 3
    assert (found.codes != _start().grid.encode(_start().weight)).any()


def test_never_worse_than_its_start() -> None:
    found, _ = _learn(_start(), unlearnable=True)
    assert found.best == found.start
    assert torch.equal(found.results["w"].codes, _start().grid.encode(_start().weight))
    assert found.history[-1][0] < 40  # and it does not go on to the end


def test_the_same_seed_gives_the_same_codes() -> None:
    one, two, other = (_learn(_start(), seed=seed)[0].results["w"].codes for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_gradients_that_are_not_finite_move_nothing() -> None:
    soft = LearnableRounding(_start())
    soft().backward(torch.full((N, K), float("nan")))
    soft.move(0.5)
    assert torch.equal(soft.result().codes, _start().grid.encode(_start().weight))


def test_a_gain_is_refused() -> None:
    start = _start()
    grid = minmax_grid(
        start.weight, bits=2, group_size=GROUP, sym=False, storage_dtype=torch.bfloat16, gain=torch.full((N, 2), 1.1)
    )
    with pytest.raises(ValueError, match="gain"):
        LearnableRounding(LearnableInit(start.weight, grid, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_and_vectors_are_learned_and_codes_stay(dtype: torch.dtype) -> None:
    start = _start(storage_dtype=dtype)
    codes = start.grid.encode(start.weight)
    bias = torch.rand(N)
    soft = {
        "w": LearnableScales(QuantizedWeight(start.grid, codes), dtype),
        "b": LearnableVector(torch.zeros(N) + 0.1, dtype),
    }
    assert torch.equal(soft["w"](), start.grid.decode(codes))
    assert torch.equal(soft["b"](), torch.full((N,), 0.1).to(dtype).float())
    generator = seeds.generator()
    mixing = torch.randn(12, K, generator=generator)
    x, held = (torch.randn(200, 12, generator=generator) @ mixing for _ in range(2))

    def loss(tensors: dict[str, Tensor], rows: Tensor) -> Tensor:
        return (rows @ (tensors["w"] - start.weight).T + tensors["b"] - bias).square().mean()

    def batch_loss(tensors: dict[str, Tensor], step: int) -> float:
        value = loss(tensors, x[step % 4 :: 4])
        value.backward()
        return float(value.detach())

    found = learn(soft, batch_loss, lambda tensors: float(loss(tensors, held)), steps=60, rate=0.03)
    assert found.best < 0.9 * found.start
    result, vector = found.results["w"], found.results["b"]
    assert torch.equal(result.codes, codes)
    assert torch.equal(result.grid.scale, result.grid.scale.to(dtype).float())
    assert torch.equal(vector, vector.to(dtype).float())
    judged = float(loss({"w": result.values, "b": vector}, held))
    assert judged == pytest.approx(found.best, rel=rounding(torch.float32, K + held.numel()))
