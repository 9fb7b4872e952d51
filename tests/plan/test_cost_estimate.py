"""What a run takes, counted by hand for a decoder of one linear."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.calibration import end_to_end
from transformers_qaig.data import own_answers
from transformers_qaig.plan import cost_estimate
from transformers_qaig.plan.cost_estimate import (
    FLOAT32,
    FORWARDS,
    GRADIENT_PASSES,
    LEARNED_BYTES,
    CostEstimate,
    Linears,
    estimate_costs,
)
from transformers_qaig.plan.coverage import BLOCKS, Coverage, OutsideWeight, PartSize

N, K, SAMPLES, TOKENS = 96, 64, 16, 10
COUNT = SAMPLES * TOKENS
RESULT, CHECKPOINT, OUTSIDE = 3_000, 12_000, 20_000


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """One block with a linear, and one that is too small to be packed; without experts."""
    block = nn.ModuleDict({"up": nn.Linear(K, N), "gate": nn.Linear(K, 4)}).to(torch.bfloat16)
    monkeypatch.setattr(cost_estimate, "find_decoder_blocks", lambda model: {"layers.0": block})
    monkeypatch.setattr(cost_estimate, "find_experts", lambda model: {})
    return nn.Module()


def estimate(model: nn.Module, recipe: str, **settings: Any) -> CostEstimate:
    coverage = Coverage(packed=N * K, parts={BLOCKS: PartSize(8 * CHECKPOINT, 8 * RESULT)})
    budget = BitBudget.of(settings.get("budget"))
    chooses = budget is not None and budget.counts_file
    coverage.outside_choices = {"head": OutsideWeight("head", OUTSIDE)} if chooses else {}
    bits = None if "budget" in settings else 3
    config = QAIGConfig(bits=bits, recipe=recipe, num_samples=SAMPLES, **settings)
    return estimate_costs(model, config, coverage, TOKENS)


def test_a_recipe_that_reads_no_data_holds_the_result_and_a_block(model: nn.Module) -> None:
    found = estimate(model, "rtn")
    assert (found.checkpoint, found.result, found.disk) == (CHECKPOINT, RESULT, RESULT)
    assert found.memory == RESULT + FLOAT32 * N * K
    assert found.device_memory == (2 + FLOAT32) * N * K
    assert found.flop == {}


def test_waiting_samples_are_in_two_models_and_gptq_keeps_no_inputs(model: nn.Module) -> None:
    streams = 2 * COUNT * K * 2
    assert estimate(model, "gptq").memory == RESULT + FLOAT32 * N * K + streams
    gathered = 2 * COUNT * K * 2
    assert estimate(model, "awq").memory == RESULT + FLOAT32 * N * K + streams + gathered


def test_a_work_dir_takes_disk_for_memory(model: nn.Module, tmp_path: Any) -> None:
    plain, kept = estimate(model, "gptq"), estimate(model, "gptq", calibration={"work_dir": tmp_path / "work"})
    assert plain.memory - kept.memory == RESULT
    assert kept.disk - plain.disk == RESULT


def test_arithmetic_is_that_of_the_products(model: nn.Module) -> None:
    flop = estimate(model, "gptq").flop
    assert flop.keys() == {"forward passes", "second moments", "rounding"}
    assert flop["forward passes"] == FORWARDS * 2 * COUNT * N * K
    assert flop["second moments"] == 2 * COUNT * K**2
    assert flop["rounding"] == 2 * K**3 + N * K**2
    assert estimate(model, "default").flop["second moments"] == 2 * flop["second moments"]


def test_a_budget_rounds_and_runs_every_width(model: nn.Module) -> None:
    plain, forward = estimate(model, "gptq").flop, 2 * COUNT * N * K
    each = (GRADIENT_PASSES + 1) * forward + plain["second moments"] + plain["rounding"]
    assert estimate(model, "gptq", budget=BitBudget(3.2, cost="fisher")).flop["costs of widths"] == 4 * each
    two = BitBudget(3.2, candidates=(2, 4), cost="fisher")
    assert estimate(model, "gptq", budget=two).flop["costs of widths"] == 2 * each
    assert estimate(model, "rtn", budget=two).flop == {"costs of widths": 2 * GRADIENT_PASSES * forward}
    assert estimate(model, "gptq", budget=3.2).flop["costs of widths"] == GRADIENT_PASSES * forward


def test_a_budget_holds_the_errors_of_all_weights_that_it_chooses_for(model: nn.Module, tmp_path: Any) -> None:
    streams = 2 * COUNT * K * 2
    whole, blocks = BitBudget(size="4x", cost="fisher"), BitBudget(3.2, cost="fisher")
    in_files = {"calibration": {"work_dir": tmp_path / "work"}}
    assert estimate(model, "gptq", budget=blocks).memory == estimate(model, "gptq").memory  # which is more
    assert estimate(model, "gptq", budget=whole).memory == 2 * (N * K + OUTSIDE) + streams
    assert estimate(model, "gptq", budget=whole, **in_files).disk == 2 * RESULT + 4 * 2 * (N * K + OUTSIDE)
    # Those of nearest rounding are kept outside the blocks only, and never in files.
    assert estimate(model, "gptq", budget="4x").memory == 2 * OUTSIDE + streams
    assert estimate(model, "gptq", budget="4x", **in_files).disk == 2 * RESULT


@pytest.mark.parametrize(("limit", "in_memory"), [(None, 1.0), ("2kB", 0.1), ("1GB", 1.0)])
def test_what_is_learned_of_experts_goes_to_files_beyond_the_limit(limit: str | None, in_memory: float) -> None:
    block = [Linears(10, 10, 1, 1.0), Linears(10, 10, 10, 2.0)]
    config: Any = SimpleNamespace(
        recipe=QAIGConfig(recipe="best").recipe, calibration=SimpleNamespace(expert_memory=limit)
    )
    experts = LEARNED_BYTES * 1000
    memory, files = cost_estimate._learned(block, config)
    assert memory == LEARNED_BYTES * 100 + in_memory * experts
    assert memory + files == LEARNED_BYTES * 100 + experts


def test_what_is_learned_end_to_end_is_counted_as_it_is_done() -> None:
    """The plan is below calibration and cannot import these numbers."""
    assert cost_estimate.END_TO_END_BATCH == end_to_end.BATCH
    assert cost_estimate.END_TO_END_STEPS == end_to_end.STEPS
    assert cost_estimate.OWN_ANSWERS == own_answers.NUMBER
    assert cost_estimate.END_TO_END_TOKENS == end_to_end.MOST_TOKENS
