"""A model quantized under a budget of bits, from the request to the file."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.integration.interrupted_costs import interrupt_second_measurement
from tests.lifecycle import FAST, logits
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.config import COSTS
from transformers_qaig.formats.scheme import plan_to_dict
from transformers_qaig.quantizer.bit_costs import measure
from transformers_qaig.utils import work_folder


def _quantize(folder: Path, **settings) -> nn.Module:
    config = QAIGConfig(**{**FAST, "recipe": "rtn", **settings})
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def _widths(model: nn.Module) -> set[int]:
    return {entry["bits"] for entry in model.config.quantization_config.plan.values()}


EVERY_WIDTH = BitBudget(4.5, cost="fisher")


@pytest.fixture(scope="module")
def mixed(llava: Path) -> nn.Module:
    return _quantize(llava, budget=EVERY_WIDTH, recipe="fast")


def test_the_budget_is_met_and_used(mixed: nn.Module) -> None:
    report = mixed.qaig_report
    assert 4.3 < report.bits_per_weight <= 4.5
    stored = sum(
        8 * tensor.element_size() * tensor.numel()
        for name, tensor in mixed.state_dict().items()
        if name.rpartition(".")[2] in ("weight_packed", "weight_scale", "weight_zero_point")
    )
    assert stored == report.coverage.stored_bits
    assert len(_widths(mixed)) > 1


def test_saved_and_loaded_it_is_the_same_model(mixed: nn.Module, llava: Path, tmp_path: Path) -> None:
    mixed.save_pretrained(tmp_path, max_shard_size="100KB")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(logits(again, llava), logits(mixed, llava))
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert settings["budget"] == {"bits": 4.5, "candidates": [2, 3, 4, 8], "cost": "fisher", "fuse": False}
    assert settings["plan"] == mixed.config.quantization_config.plan


def test_its_plan_given_back_makes_the_same_model(mixed: nn.Module, llava: Path, tmp_path: Path) -> None:
    mixed.save_pretrained(tmp_path)
    again = _quantize(llava, plan=tmp_path, recipe="fast")
    assert torch.equal(logits(again, llava), logits(mixed, llava))
    edited = _quantize(llava, plan=tmp_path, overrides={"*.down_proj": 8})
    assert {e["bits"] for p, e in edited.config.quantization_config.plan.items() if p.endswith("down_proj")} == {8}


@pytest.mark.parametrize("cost", COSTS)
def test_every_cost_meets_the_budget(llava: Path, cost: str) -> None:
    model = _quantize(llava, budget=BitBudget(4.4, candidates=(2, 3, 4), cost=cost))
    assert model.qaig_report.bits_per_weight <= 4.4
    assert len(_widths(model)) > 1


def test_serving_engines_find_one_width_in_what_they_fuse(llava: Path) -> None:
    plan = _quantize(llava, budget=BitBudget(4.5, fuse=True)).config.quantization_config.plan
    for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        for path in plan:
            if path.endswith(names[0]):
                assert len({plan[path.replace(names[0], name)]["bits"] for name in names}) == 1


def test_overrides_take_their_share_of_the_budget(llava: Path) -> None:
    model = _quantize(llava, budget=4.5, overrides={"*.o_proj": 8})
    plan = model.config.quantization_config.plan
    assert all(entry["bits"] == 8 for path, entry in plan.items() if path.endswith("o_proj"))
    assert model.qaig_report.bits_per_weight <= 4.5


def test_a_budget_out_of_reach_stops_before_any_weight_is_read(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_costs", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"budget=2.*to 9\."):
        _quantize(llava, budget=2)


def test_the_callers_config_may_be_used_again(llava: Path) -> None:
    config = QAIGConfig(**FAST, recipe={"name": "rtn", "rotation": "all"}, budget=4.5, vision_bits=4)
    before = copy.deepcopy(config)
    first = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert config == before
    assert first.config.quantization_config.plan == plan_to_dict(first.qaig_report.plan)
    second = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert torch.equal(logits(second, llava), logits(first, llava))


def test_a_plan_and_a_budget_are_one_too_many(llava: Path, mixed: nn.Module) -> None:
    with pytest.raises(ValueError, match="already fixes every width"):
        _quantize(llava, budget=4, plan=mixed.config.quantization_config)


def test_an_interrupted_measurement_resumes(
    llava: Path, mixed: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, decided = interrupt_second_measurement(monkeypatch)
    settings = {"budget": EVERY_WIDTH, "recipe": "fast", "calibration": {"work_dir": tmp_path}}
    with pytest.raises(KeyboardInterrupt):
        _quantize(llava, **settings)
    before = len(decided)
    model = _quantize(llava, **settings)
    assert before == 4  # two widths of two blocks; the second width's errors are not searched again
    assert len(decided) == 8
    assert len(measured) == 2 + 3  # and the first width's costs not measured again
    assert torch.equal(logits(model, llava), logits(mixed, llava))
    with pytest.raises(ValueError, match="different options"):
        _quantize(llava, **{**settings, "budget": BitBudget(4.5, candidates=(2, 4))})


def test_the_report_counts_the_time_of_the_measurements(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, pause = measure.measure_costs, 1.0

    def slowly(*arguments: Any) -> Any:
        time.sleep(pause)
        return real(*arguments)

    monkeypatch.setattr(measure, "measure_costs", slowly)
    report = _quantize(llava, budget=4.5, recipe="rtn").qaig_report
    assert report.seconds > sum(block.seconds for block in report.targets) + pause


def test_damaged_costs_are_measured_again(
    llava: Path, mixed: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"budget": EVERY_WIDTH, "recipe": "fast", "calibration": {"work_dir": tmp_path}}
    _quantize(llava, **settings)
    damaged = [*(tmp_path / "costs").glob("1.costs.*"), *(tmp_path / "costs").glob("1.errors.*0.safetensors")]
    assert len(damaged) == 2
    for file in damaged:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    (forged,) = (tmp_path / "costs").glob("0.costs.*")
    with safe_open(forged, "pt") as stored:
        facts = {**stored.metadata(), "costs": "{}"}
    del facts[work_folder._CHECKSUM_KEY]
    save_file({}, forged, {**facts, work_folder._CHECKSUM_KEY: work_folder._checksum(forged.stem, {}, facts)})
    model = _quantize(llava, **settings)
    assert all(str(file) in caplog.text for file in [*damaged, forged])
    assert torch.equal(logits(model, llava), logits(mixed, llava))


def test_costs_of_another_model_or_of_other_inputs_are_not_taken(llava: Path, tmp_path: Path) -> None:
    settings = {"budget": 4.5, "calibration": {"work_dir": tmp_path / "work"}}
    _quantize(llava, **settings)
    with pytest.raises(ValueError, match="different activation_bits"):
        _quantize(llava, **settings, activation_bits=8)
    model = AutoModelForImageTextToText.from_pretrained(llava)
    with torch.no_grad():  # outside of the blocks, whose errors are the same
        model.get_output_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path / "changed")
    AutoProcessor.from_pretrained(llava).save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match="different weights"):
        _quantize(tmp_path / "changed", **settings)


def test_a_budget_beyond_the_widest_choice_measures_nothing(
    llava: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measure, "measure_costs", lambda *_: pytest.fail("measured"))
    model = _quantize(llava, budget=BitBudget(12, candidates=(2, 4)))
    assert _widths(model) == {4}
    assert model.qaig_report.bits_per_weight == pytest.approx(5.125)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said[0].startswith("`budget=12` is more than there is to choose from: with `candidates=(2, 4)`")


@pytest.mark.parametrize("budget", [BitBudget(uniform=2), BitBudget(uniform=3, candidates=(3, 8), fuse=True)])
def test_a_budget_that_leaves_one_choice_measures_nothing(
    budget: BitBudget, llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "measure_costs", lambda *_: pytest.fail("measured"))
    assert _widths(_quantize(llava, budget=budget)) == {budget.uniform}
