"""Samples that are held back validate a first result, then join: what is kept is made from all of them."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from tests.calibration.test_block_quantizer import Case
from tests.tolerance import assert_close
from transformers_qaig.calibration import steps
from transformers_qaig.calibration.decisions import BlockDecisions
from transformers_qaig.calibration.group_context import GroupContext, Measured
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.execution.held_back import VALIDATION_EVERY
from transformers_qaig.execution.token_rows import RowFinder, Rows
from transformers_qaig.rounding.clipping import FACTORS
from transformers_qaig.rounding.hessian import Hessian, second_moment
from transformers_qaig.rounding.moments import InputMoments
from transformers_qaig.rounding.quant_grid import QuantGrid, QuantizedWeight

MANY = 1 + len(FACTORS)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize("has_pictures", [False, True])
def test_codes_are_made_from_all_samples_once_validated(
    case: Case, has_pictures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that are held back are measured once; twice where pictures' tokens choose no damping."""
    arrived, measured = [], []
    weights = {case.block: {s: mask.float() for s, mask in enumerate(case.masks)}} if has_pictures else {}
    monkeypatch.setattr(case, "damping_weights", weights)
    real, join = GroupContext._moments_of, GroupContext.join

    def moments_of(context: GroupContext, samples: Any, *rest: Any) -> InputMoments:
        arrived.append(sorted(s for one in samples for s in one.samples))
        return real(context, samples, *rest)

    def joined(context: GroupContext, decisions: BlockDecisions) -> Measured:
        measured.append(join(context, decisions))
        return measured[-1]

    monkeypatch.setattr(GroupContext, "_moments_of", moments_of)
    monkeypatch.setattr(GroupContext, "join", joined)
    case.quantizer(recipe_of("default")).decide()
    held = list(range(0, 8, VALIDATION_EVERY))
    assert arrived == 4 * [[s for s in range(8) if s not in held], held, *[held] * has_pictures]
    inputs = [(call.args[0], mask.float()) for call, mask in zip(case.calls_q.values(), case.masks)]
    normed = [(case.block.input_layernorm(x), weight) for x, weight in inputs]
    tokens = sum(x.shape[1] for x, _ in normed)
    assert_close(measured[0].moments.second, second_moment(normed), tokens + normed[0][0].shape[-1])


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many grids each rounding by GPTQ tries."""
    found: list[int] = []
    one, many = steps.gptq_codes, steps.gptq_on_best_grid

    def on_one(*arguments: Any) -> QuantizedWeight:
        found.append(1)
        return one(*arguments)

    def on_many(weight: Tensor, hessian: Hessian, tried: list[QuantGrid], layer: str) -> QuantizedWeight:
        found.append(len(tried))
        return many(weight, hessian, tried, layer)

    monkeypatch.setattr(steps, "gptq_codes", on_one)
    monkeypatch.setattr(steps, "gptq_on_best_grid", on_many)
    return found


@pytest.mark.parametrize("validate", [True, False])
def test_trials_are_on_one_grid_and_what_is_kept_on_many(case: Case, validate: bool, grids: list[int]) -> None:
    case.quantizer(replace(recipe_of("default"), validate=validate)).decide()
    assert grids == [tried for linears in (3, 1, 2, 1) for tried in [1] * linears * validate + [MANY] * linears]


def test_what_no_other_sample_joins_is_no_trial(case: Case, grids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes know that before they begin; one process that runs samples anew finds out."""
    rows = RowFinder.rows

    def of_samples_that_join(finder: RowFinder, sample: int, x: Tensor) -> Rows | None:
        return rows(finder, sample, x) if sample % VALIDATION_EVERY else None

    monkeypatch.setattr(RowFinder, "rows", of_samples_that_join)
    case.quantizer(recipe_of("default")).decide()
    assert grids == [MANY] * 2 * 7
