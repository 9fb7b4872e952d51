"""The damping that held-back tokens choose: more where calibration has few tokens, and never one that they refute."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import seeds
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.rounding import damping
from transformers_qaig.rounding.damping import DAMPINGS, Damping, Hessians, choose_damping
from transformers_qaig.rounding.hessian import DAMPING, Hessian, moment_sum
from transformers_qaig.rounding.moments import InputMoments
from transformers_qaig.rounding.quant_grid import QuantGrid, minmax_grid

CHANNELS = 64
RECIPE = recipe_of("default")
GRID: dict[str, Any] = {
    "bits": 2,
    "group_size": 32,
    "sym": False,
    "storage_dtype": torch.float32,
    "include_zero": True,
}


def moments(tokens: int, generator: torch.Generator) -> InputMoments:
    """Of inputs that vary in a few directions most, shrunk in the quantized model, with noise."""
    mixed = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(seeds.seed()))
    directions = torch.linalg.qr(mixed).Q * torch.logspace(0, -2, CHANNELS).unsqueeze(-1)
    x_q, noise = (torch.randn(1, tokens, CHANNELS, generator=generator) for _ in range(2))
    x = (1.2 * x_q + 0.3 * noise) @ directions
    x_q, weight = x_q @ directions, torch.ones(1, tokens)
    (second, mass), (shift, _) = (moment_sum([(x_q, other, weight)]) for other in (x_q, x - x_q))
    return InputMoments.of_sums(second, shift, mass)


def chosen(tokens: int, **changes: Any) -> Damping:
    generator = seeds.generator()
    weights = {"q": torch.randn(96, CHANNELS, generator=generator), "k": torch.randn(32, CHANNELS, generator=generator)}
    arguments = {
        "weights": weights,
        "grids": dict.fromkeys(weights, GRID),
        "calibration": moments(tokens, generator),
        "held_back": moments(20_000, generator),
        "recipe": RECIPE,
    }
    return choose_damping(**arguments | changes, hessian_of=Hessians(arguments["calibration"].second))


def test_few_tokens_ask_for_more_damping() -> None:
    few, many = chosen(100), chosen(20_000)
    assert few.codes >= many.codes
    assert few.target > many.target
    assert {few.codes, few.target, many.codes, many.target} <= {*DAMPINGS}


def test_targets_that_do_not_move_have_no_damping_of_their_own() -> None:
    assert chosen(100, recipe=replace(RECIPE, asymmetric=0.0)).target == DAMPING


def test_moments_that_are_not_finite_leave_the_damping() -> None:
    bad = InputMoments(*(torch.full((CHANNELS, CHANNELS), torch.nan) for _ in range(2)), torch.tensor(10.0))
    assert chosen(100, held_back=bad) == Damping()


def test_only_some_rows_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = damping.gptq

    def gptq(weight: Tensor, *rest: Any) -> Any:
        seen.append(len(weight))
        return real(weight, *rest)

    monkeypatch.setattr(damping, "gptq", gptq)
    monkeypatch.setattr(damping, "ROWS", 20)
    chosen(100)
    assert set(seen) == {20, 16}  # every fifth of 96 rows, every second of 32


@pytest.mark.parametrize("best", DAMPINGS)
def test_the_search_ends_at_the_least_error_on_either_side(best: float) -> None:
    tried: list[float] = []

    def error_of(value: float) -> float:
        tried.append(value)
        return abs(DAMPINGS.index(value) - DAMPINGS.index(best))

    assert damping._least(error_of) == best
    assert len(tried) == len({*tried})


@pytest.mark.parametrize("clipping", [True, False])
def test_a_trial_is_on_a_grid_that_the_recipe_could_take(monkeypatch: pytest.MonkeyPatch, clipping: bool) -> None:
    seen: list[bool] = []
    real = damping.gptq

    def gptq(weight: Tensor, hessian: Hessian, grid: QuantGrid) -> Any:
        whole = minmax_grid(weight, **GRID)
        seen.append(torch.equal(grid.scale, whole.scale))
        return real(weight, hessian, grid)

    monkeypatch.setattr(damping, "gptq", gptq)
    chosen(100, recipe=replace(RECIPE, clipping=clipping))
    assert seen
    assert set(seen) == {not clipping}
