"""Without `bits`, a budget or a plan, `default` and `best` choose widths by what they cost the answers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.lifecycle import FAST, inputs, logits
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.config.budget import DEFAULT_BUDGET
from transformers_qaig.data.tensors import NO_ANSWER
from transformers_qaig.plan.allocate import fused_sets
from transformers_qaig.quantizer.bit_costs import measure


def quantized(folder: Path, **settings: Any) -> nn.Module:
    config = QAIGConfig(**{**FAST, **settings})
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def widths(model: nn.Module) -> dict[str, int]:
    return {path: entry["bits"] for path, entry in model.config.quantization_config.plan.items()}


QUIET = "model.language_model.layers.1"


@pytest.fixture(scope="module")
def uneven(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which one block adds almost nothing."""
    folder = tmp_path_factory.mktemp("uneven")
    model = AutoModelForImageTextToText.from_pretrained(llava)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        model.get_submodule(f"{QUIET}.{name}").weight.data *= 0.01
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(llava).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def attributed(uneven: Path) -> nn.Module:
    return quantized(uneven)


def test_the_block_that_costs_nothing_gets_least(attributed: nn.Module) -> None:
    found = widths(attributed)
    assert {bits for path, bits in found.items() if path.startswith(QUIET)} == {3, 4}
    assert {bits for path, bits in found.items() if not path.startswith(QUIET)} == {4, 8}


def test_it_takes_no_more_than_four_bits_for_all(attributed: nn.Module, uneven: Path) -> None:
    found = widths(attributed)
    assert attributed.qaig_report.bits_per_weight <= quantized(uneven, bits=4).qaig_report.bits_per_weight
    assert all(len({found[path] for path in group}) == 1 for group in fused_sets(found))
    assert attributed.qaig_report.width_costs.cost == "fisher_rtn"
    assert "bits=4 turns this off" in str(attributed.qaig_report)


def test_the_file_says_how_widths_were_chosen(attributed: nn.Module, uneven: Path, tmp_path: Path) -> None:
    attributed.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert settings["budget"] == DEFAULT_BUDGET.to_dict()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(logits(again, uneven), logits(attributed, uneven))
    assert widths(again) == widths(attributed)


@pytest.mark.parametrize(
    "settings",
    [{"bits": 4}, {"recipe": "gptq"}, {"recipe": "rtn"}, {"recipe": {"name": "default", "attributed_widths": False}}],
)
def test_one_width_for_all(settings: dict[str, Any], llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_costs", lambda *_: pytest.fail("measured"))
    model = quantized(llava, **settings)
    assert set(widths(model).values()) == {4}
    assert model.config.quantization_config.budget is None


def test_a_plan_is_carried_out(attributed: nn.Module, uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_costs", lambda *_: pytest.fail("measured"))
    assert widths(quantized(uneven, plan=attributed.config.quantization_config)) == widths(attributed)


def test_without_answers_all_get_one_width_and_a_warning_says_so(
    llava: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measure, "measure_costs", lambda *_: pytest.fail("measured"))
    sample = inputs(llava)
    labels = torch.full_like(sample["input_ids"], NO_ANSWER)
    labels[:, 0] = sample["input_ids"][:, 0]  # which nothing predicts
    unanswered = {**sample, "labels": labels}
    model = quantized(llava, dataset=[unanswered] * 4)
    assert set(widths(model).values()) == {4}
    assert "No calibration sample has an answer" in caplog.text


@pytest.mark.parametrize("override", [5, 8, {"group_size": -1}])
def test_an_override_leaves_the_other_layers_their_choice(override: Any, uneven: Path) -> None:
    found = widths(quantized(uneven, overrides={"*.q_proj": override}))
    if isinstance(override, int):
        assert {bits for path, bits in found.items() if path.endswith("q_proj")} == {override}
    assert {bits for path, bits in found.items() if path.startswith(QUIET) and path.endswith("k_proj")} <= {3, 4}


def test_a_quantized_model_lends_its_configuration(attributed: nn.Module, uneven: Path) -> None:
    config = copy.deepcopy(attributed.config.quantization_config)
    config.dataset = FAST["dataset"]
    again = AutoModelForImageTextToText.from_pretrained(uneven, quantization_config=config)
    assert widths(again) == widths(attributed)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, AttributeError])
def test_where_costs_cannot_be_measured_all_get_one_width(
    error: type[Exception], llava: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise error("no gradient")

    monkeypatch.setattr(measure, "measure_costs", fail)
    model = quantized(llava, recipe={"name": "rtn", "attributed_widths": True})
    assert set(widths(model).values()) == {4}
    assert "cannot be measured (no gradient): every weight gets 4 bits" in caplog.text
    with pytest.raises(error, match="no gradient"):
        quantized(llava, recipe="rtn", budget=BitBudget(uniform=4))


def test_one_block_is_in_float32_at_a_time(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = measure.sequential_onload, []
    monkeypatch.setattr(measure, "sequential_onload", lambda *a: seen.append(len(a[1])) or real(*a))
    quantized(llava, recipe={"name": "rtn", "attributed_widths": True})
    assert seen == [2]
