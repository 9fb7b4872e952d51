"""The plan of a run: given, or left open by a budget until costs are measured."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.families import build
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.config.budget import DEFAULT_BUDGET
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.distributed.ranks import Ranks
from transformers_qaig.formats.scheme import plan_to_dict
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.quantizer.bit_costs import measure
from transformers_qaig.quantizer.planned_widths import PlannedWidths
from transformers_qaig.utils.errors import SettingError


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llava")[0]


def planned(model: PreTrainedModel, **settings: Any) -> PlannedWidths:
    widths = PlannedWidths(QAIGConfig(group_size=32, **settings))
    widths.make(model, ())
    return widths


def tried(model: PreTrainedModel, **settings: Any) -> PlannedWidths:
    """Planned, and tried without weights."""
    widths = planned(model, **settings)
    widths.count_headers(model, widths.skeleton(model), ())
    return widths


def bits_of(widths: PlannedWidths) -> set[int]:
    return {scheme.bits for scheme in widths.plan.values()}


def cannot_be_measured(*_: Any) -> None:
    raise RuntimeError("its forward has no gradient")


def test_bits_say_every_width(model: PreTrainedModel) -> None:
    widths = planned(model, bits=3)
    assert (bits_of(widths), widths.options) == ({3}, {})


def test_a_plan_overrules_the_default_budget_but_no_other(model: PreTrainedModel) -> None:
    plan = plan_to_dict(planned(model, bits=5).plan)
    config = QAIGConfig(group_size=32, plan=plan)
    config.budget = DEFAULT_BUDGET
    widths = PlannedWidths(config)
    widths.make(model, ())
    assert (config.budget, bits_of(widths), widths.options) == (None, {5}, {})
    with pytest.raises(ValueError, match="`plan` already fixes every width: remove `budget`"):
        planned(model, plan=plan, budget=4)


def test_a_budget_with_room_for_the_largest_widths_leaves_no_choice(model: PreTrainedModel) -> None:
    widths = planned(model, budget=BitBudget(bits=20, candidates=(3, 4)))
    assert (bits_of(widths), widths.options) == ({4}, {})


def test_until_a_budget_has_chosen_the_plan_is_a_likely_one(model: PreTrainedModel) -> None:
    widths = planned(model, budget=DEFAULT_BUDGET)
    assert widths.plan == {}
    assert all([option.bits for option in choices] == [3, 4, 8] for choices in widths.options.values())
    packed = [name for name, module in widths.skeleton(model).named_modules() if isinstance(module, QAIGLinear)]
    assert set(packed) == set(widths.plan) == set(widths.options)
    assert bits_of(widths) <= {3, 4, 8}


def test_one_width_for_all_is_logged_with_its_reason(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    widths = tried(model, budget=DEFAULT_BUDGET)
    widths.use_uniform("No answer")
    assert "No answer: every weight gets 4 bits. Give bits=4" in caplog.text
    assert (bits_of(widths), widths.options) == ({4}, {})
    assert widths.coverage.stored_bits == planned(model, bits=4).coverage.stored_bits


def test_where_costs_cannot_be_measured_the_default_takes_one_width(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measure, "measure_costs", cannot_be_measured)
    widths = tried(model, budget=DEFAULT_BUDGET)
    widths.allocate(model, CalibrationData())
    assert "cannot be measured (its forward has no gradient)" in caplog.text
    assert (bits_of(widths), widths.costs) == ({4}, None)


@pytest.mark.parametrize(
    "error",
    [SettingError("`work_dir` holds another run"), OSError("no room"), torch.OutOfMemoryError()],
    ids=["another run", "no room", "memory"],
)
def test_where_the_folder_or_the_memory_is_at_fault_the_default_stops(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(measure, "measure_costs", failing)
    with pytest.raises(type(error)):
        tried(model, budget=DEFAULT_BUDGET).allocate(model, CalibrationData())


@pytest.mark.parametrize(
    ("budget", "data"),
    [(BitBudget(bits=4.5), CalibrationData()), (DEFAULT_BUDGET, CalibrationData(ranks=Ranks(0, 2)))],
    ids=["a budget that was asked for", "several processes"],
)
def test_where_one_width_was_not_meant_or_processes_could_differ_it_is_an_error(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, budget: BitBudget, data: CalibrationData
) -> None:
    monkeypatch.setattr(measure, "measure_costs", cannot_be_measured)
    with pytest.raises(RuntimeError, match="no gradient"):
        tried(model, budget=budget).allocate(model, data)


def test_layers_that_an_override_sets_apart_keep_the_choice_of_the_others(model: PreTrainedModel) -> None:
    widths = tried(model, budget=DEFAULT_BUDGET, overrides={"*.q_proj": 8})
    widths.skeleton(model)
    layer = "model.language_model.layers.0.self_attn"
    assert widths.plan[f"{layer}.q_proj"].bits == 8
    assert widths.plan[f"{layer}.k_proj"].bits in (3, 4)


def test_measured_costs_choose_and_are_kept_for_the_report(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer costs most."""

    def measured(model: Any, options: Any, *_: Any) -> Any:
        return {
            path: [replace(option, cost=(1e3 if ".0." in path else 1.0) * 4.0**-option.bits) for option in choices]
            for path, choices in options.items()
        }

    monkeypatch.setattr(measure, "measure_costs", measured)
    widths = tried(model, budget=DEFAULT_BUDGET)
    widths.allocate(model, CalibrationData())
    first, others = ([s.bits for p, s in widths.plan.items() if (".0." in p) == is_first] for is_first in (True, False))
    assert min(first) >= max(others)
    assert widths.costs is not None
    uniform = planned(model, bits=4).coverage.stored_bits
    assert widths.coverage.stored_bits <= uniform
    widths.forget_options()
    assert widths.options == {}
