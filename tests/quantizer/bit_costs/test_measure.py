"""What each width of a weight costs the answers: of an expert, of a tied head, and of parts outside the blocks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests import families
from tests.experts import build, stack_of
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.loading.experts import linearize_experts
from transformers_qaig.nn.experts_layout import find_experts
from transformers_qaig.plan.allocate import SchemeOption, allocate
from transformers_qaig.plan.build import list_schemes
from transformers_qaig.plan.coverage import Coverage
from transformers_qaig.quantizer.bit_costs import answer_costs, measure
from transformers_qaig.quantizer.bit_costs.cost_run import CostRun
from transformers_qaig.quantizer.bit_costs.measure import measure_costs
from transformers_qaig.structure import find_input_embeddings

RARE = 3


def model_with_a_rare_expert() -> hf.PreTrainedModel:
    model = build("deepseek_v3")
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()[RARE] = -1e4
    return model


def costs_of_text(model: hf.PreTrainedModel, config: QAIGConfig) -> tuple[dict[str, list[SchemeOption]], Coverage]:
    """Returns the options of a model with experts, with their costs on random tokens, and what they cover."""
    options, coverage = list_schemes(model, config)
    linearize_experts(model, find_experts(model), {path: choices[0].scheme for path, choices in options.items()})
    ids = torch.randint(3, 128, (6, 1, 24), generator=torch.Generator().manual_seed(0))
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    answers = [torch.arange(24)[None] > 4 for _ in samples]
    return measure_costs(model, options, CalibrationData.of(samples, answers), config), coverage


def test_an_expert_that_no_token_needs_costs_nothing_and_gets_the_fewest_bits() -> None:
    model = model_with_a_rare_expert()
    stack, layout = stack_of(model)
    config = QAIGConfig(
        group_size=32, recipe="rtn", budget=BitBudget(bits=4.5, candidates=(2, 3, 4, 8), cost="fisher"), seed=0
    )
    measured, coverage = costs_of_text(model, config)
    costs = [[option.cost for option in measured[f"{stack}.{e}.up_proj"]] for e in range(layout.num_experts)]
    assert costs[RARE] == [0.0] * 4
    assert all(costs[e][0] > costs[e][-1] > 0 for e in range(layout.num_experts) if e != RARE)
    schemes = allocate(measured, 4.5 * coverage.packed).schemes
    bits = [[schemes[f"{stack}.{e}.{name}"].bits for name in layout.projections] for e in range(layout.num_experts)]
    assert bits[RARE] == [2, 2, 2]
    assert all(sum(own) > 6 for e, own in enumerate(bits) if e != RARE)


def costs_by_width(recipe: str, cost: str, candidates: tuple[int, ...] = (3, 4, 8)) -> dict[str, dict[int, float]]:
    """Returns weight path → width → cost, of a small model with experts."""
    model = build("deepseek_v3")
    config = QAIGConfig(group_size=32, recipe=recipe, budget=BitBudget(bits=4.5, candidates=candidates, cost=cost))
    measured, _ = costs_of_text(model, config)
    return {path: {option.bits: option.cost for option in choices} for path, choices in measured.items()}


def test_nearest_rounding_is_measured_at_one_width_and_costs_what_the_step_says(monkeypatch) -> None:
    runs = []
    real = measure.costs_of
    monkeypatch.setattr(measure, "costs_of", lambda *arguments: runs.append(1) or real(*arguments))
    costs = costs_by_width("gptq", "fisher_rtn")
    assert len(runs) == 1
    for widths in costs.values():
        assert widths[3] == pytest.approx(widths[4] * (15 / 7) ** 2)
        assert widths[8] == pytest.approx(widths[4] * (15 / 255) ** 2)
    assert costs == costs_by_width("rtn", "fisher_rtn")


def test_nearest_rounding_predicts_what_it_costs_at_every_width() -> None:
    quick, each = costs_by_width("rtn", "fisher_rtn"), costs_by_width("rtn", "fisher")
    for bits in (3, 4, 8):
        found, expected = (sum(widths[bits] for widths in costs.values()) for costs in (quick, each))
        assert found == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("unable to mmap 9 bytes from file </x>: Cannot allocate memory (12)"),
    ],
    ids=["Python", "torch", "system"],
)
def test_too_little_memory_says_what_needs_less(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(measure, "costs_of", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"while costs of widths were measured(.|\n)*num_samples"):
        costs_by_width("gptq", "fisher_rtn")


def test_without_four_bits_the_nearest_width_is_measured() -> None:
    costs = costs_by_width("rtn", "fisher_rtn", (2, 3, 8))
    assert costs.keys() == costs_by_width("rtn", "fisher_rtn").keys()
    for path, widths in costs_by_width("rtn", "fisher_rtn", (3, 8)).items():
        assert costs[path][3] == widths[3]


@pytest.mark.parametrize("cost", ["fisher", "fisher_rtn"])
def test_a_tied_head_costs_what_both_of_its_uses_cost_with_one_rounding(
    cost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = families.build("gemma3")
    inputs = families.samples(processor, 3)
    answers = [torch.arange(sample["input_ids"].shape[1])[None] > 4 for sample in inputs]
    config = QAIGConfig(group_size=32, recipe="rtn", budget=BitBudget(size="2x", candidates=(3, 4), cost=cost))
    options, _ = list_schemes(model, config)
    table, seen = find_input_embeddings(model).path, []

    def costs_of(run: CostRun, errors: dict[str, torch.Tensor], cost: str, *kept: Any) -> dict[str, float]:
        seen.append(torch.equal(errors["lm_head"], errors[table]))
        alone = {path: answer_costs.costs_of(run, {path: errors[path]}, cost)[path] for path in ("lm_head", table)}
        found = answer_costs.costs_of(run, errors, cost)
        assert found["lm_head"] == pytest.approx(alone["lm_head"], rel=1e-5)
        uses.append(found["lm_head"] + found[table])
        return found

    uses: list[float] = []
    monkeypatch.setattr(measure, "costs_of", costs_of)
    measured = measure_costs(model, options, CalibrationData.of(inputs, answers), config)
    costs = [option.cost for option in measured[table]]
    if cost == "fisher":
        assert costs == [*uses, 0.0]
    else:
        assert costs == [pytest.approx(uses[0] * (15 / 7) ** 2), uses[0], 0.0]
    assert all(seen)
    assert costs[0] > costs[1] > 0
    assert "lm_head" not in measured


def test_costs_of_all_parts_are_predictions_of_one_loss() -> None:
    """Fisher's cost of a part, against the true loss with that part rounded."""
    model, processor = families.build("llava")
    inputs = families.samples(processor, 4)
    answers = [torch.arange(sample["input_ids"].shape[1])[None] > 4 for sample in inputs]
    costs = {}
    for cost in ("fisher", "one_at_a_time"):
        config = QAIGConfig(group_size=32, recipe="rtn", budget=BitBudget(size="2x", candidates=(4,), cost=cost))
        options, coverage = list_schemes(model, config)
        measured = measure_costs(model, options, CalibrationData.of(inputs, answers), config)
        parts: dict[str, float] = {}
        for path, choices in measured.items():
            weight = coverage.outside_choices.get(path)
            part = "blocks" if weight is None else weight.part
            parts[part] = parts.get(part, 0.0) + choices[0].cost
        costs[cost] = parts
    ratios = {part: costs["fisher"][part] / costs["one_at_a_time"][part] for part in costs["fisher"]}
    assert len(ratios) == 5
    assert all(0.2 < ratio < 5 for ratio in ratios.values()), ratios


def test_what_no_gradient_reaches_counts_as_the_most_sensitive(caplog: pytest.LogCaptureFixture) -> None:
    costs = {"a": 2.0, "indexer": 0.0, "b": 1.0, "experts.0.up": 0.0}
    found = measure._with_unreached(costs, {"a": 10, "indexer": 5, "b": 2})
    assert found == {**costs, "indexer": 2.5}
    assert "indexer" in caplog.text
    assert measure._with_unreached({"a": 1.0}, {"a": 3}) == {"a": 1.0}


@pytest.mark.parametrize(("cost", "estimator"), [("fisher_rtn", "fisher_losses"), ("output_error", "output_energies")])
def test_an_interrupted_measurement_goes_on_to_the_bits_of_a_whole_one(
    cost: str, estimator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(answer_costs, estimator), list[int]()

    def measured(work_dir: Path | None, stop: int, overflow: int) -> dict[str, list[SchemeOption]]:
        def estimate(*arguments: Any, **options: Any) -> torch.Tensor:
            calls.append(len(calls))
            if len(calls) == stop:
                raise KeyboardInterrupt
            return real(*arguments, **options) * (float("nan") if len(calls) == overflow else 1)

        calls.clear()
        monkeypatch.setattr(answer_costs, estimator, estimate)
        budget = BitBudget(bits=4.5, candidates=(4,), cost=cost)
        config = QAIGConfig(group_size=32, recipe="rtn", budget=budget, calibration={"work_dir": work_dir})
        return costs_of_text(build("mixtral"), config)[0]

    monkeypatch.setattr(answer_costs, "KEPT_EVERY", 2)
    whole = measured(None, stop=0, overflow=2)
    assert len(calls) == 6
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, stop=6, overflow=2)
    assert measured(tmp_path, stop=0, overflow=0) == whole
    assert len(calls) == 2
    assert measured(tmp_path, stop=1, overflow=0) == whole
