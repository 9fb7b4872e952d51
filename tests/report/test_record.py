"""A run's record: written, read back, found beside a model and in a work folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transformers_qaig import QAIGConfig
from transformers_qaig.data.views import SampleView, SampleViews
from transformers_qaig.formats.scheme import WeightScheme, plan_to_dict
from transformers_qaig.plan.allocate import SchemeOption, allocate
from transformers_qaig.plan.coverage import BLOCKS, Coverage, PartSize
from transformers_qaig.plan.width_costs import split_layer, width_costs
from transformers_qaig.report.figures import save_figures
from transformers_qaig.report.record import as_text, layers_of, record_of
from transformers_qaig.report.record_file import checked
from transformers_qaig.report.sources import find_record
from transformers_qaig.report.summary import QuantizationReport, TargetSummary

PLAN = {f"model.layers.{i}.mlp.experts.{e}.up_proj": WeightScheme(2 + e, 64) for i in range(2) for e in range(2)}


def report() -> QuantizationReport:
    coverage = Coverage(packed=900, total=1000, stored_bits=900 * 3.0, parts={BLOCKS: PartSize(16_000, 400)})
    weights = {"mlp": {0: torch.tensor([0.0, 1.0, 2.0])}}
    targets = [TargetSummary("model.layers.0", 1e-4, rejected=["rotate"], token_weights=weights, seconds=2.0)]
    targets.append(TargetSummary("model.layers.1", damping={"mlp.up_proj": [0.003, 0.1]}))
    options = {path: [SchemeOption(WeightScheme(b, 64), 64 * b, 8.0**-b) for b in (2, 3, 4)] for path in PLAN}
    costs = width_costs("fisher", options, allocate(options, 64 * 12), coverage, [])
    views = SampleViews([9], [SampleView(4, 3, ["", "two", " frogs"], [True, False, False])], [3])
    made = QuantizationReport("qig", coverage, PLAN, 1, 3, targets, 5.0, num_targets=2)
    made.views, made.width_costs, made.times = views, costs, {"samples": 1.0}
    return made


def test_experts_of_a_stack_are_one_layer() -> None:
    assert split_layer("model.layers.3.mlp.experts.17.up_proj") == ("model.layers.3", "mlp.experts.*.up_proj")
    assert split_layer("model.projector.linear_1") == ("model.projector", "linear_1")
    assert split_layer("lm_head") == ("lm_head", "")
    assert layers_of(PLAN)[0] == {
        "block": "model.layers.0",
        "name": "mlp.experts.*.up_proj",
        "widths": {"2": 1, "3": 1},
    }


def test_a_record_survives_its_file_and_has_no_nan() -> None:
    text = as_text(record_of(report(), QAIGConfig(bits=3), with_data=True))
    assert "NaN" not in text
    found = checked(json.loads(text))
    assert found["targets"][0]["error"] == pytest.approx(1e-4)
    assert found["targets"][1]["error"] is None
    assert [target["damping"] for target in found["targets"]] == [{}, {"mlp.up_proj": [0.003, 0.1]}]
    assert found["views"][0]["words"] == ["", "two", " frogs"]
    assert found["token_weights"]["model.layers.0"]["0"]["most"] == 2.0
    assert found["times"]["calibration of model.layers.*"] == 2.0
    front = found["prices"]["front"]
    assert front[0][2] > front[-1][2]
    assert found["prices"]["chosen"][0] <= 64 * 12 / 900
    assert found["prices"]["layers"][0]["options"][0][2] == pytest.approx(2 * 8.0**-2)


def test_samples_are_in_the_record_on_request_only() -> None:
    assert "frogs" not in as_text(record_of(report(), QAIGConfig(bits=3)))


def test_a_saved_model_has_its_record_beside_it_and_pictures_can_be_drawn(
    quantized: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    found = find_record(quantized[1])
    assert found["bits_per_weight"] == pytest.approx(quantized[0].qaig_report.bits_per_weight, rel=1e-4)
    assert [target["path"] for target in found["targets"]] == [t.path for t in quantized[0].qaig_report.targets]
    assert found["views"] == []
    assert {file.name for file in save_figures(found, tmp_path)} == {"bits.png", "errors.png"}


def test_a_saved_model_without_a_record_shows_sizes_and_bits(
    quantized: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(quantized[1] / name)
    found = find_record(tmp_path)
    known = find_record(quantized[1])
    layers = [sorted((layer["block"], layer["name"]) for layer in each["layers"]) for each in (found, known)]
    assert layers[0] == layers[1]
    after = sum(part["after"] for part in found["sizes"])
    assert after == pytest.approx((quantized[1] / "model.safetensors").stat().st_size, rel=0.2)


def test_experts_of_a_saved_model_without_a_record_are_counted_one_by_one(tmp_path: Path) -> None:
    stack = "model.layers.0.mlp.experts"
    plan = {f"{stack}.0.up_proj": WeightScheme(8, 64), f"{stack}.1-3.up_proj": WeightScheme(4, 64)}
    settings = {**QAIGConfig(bits=4).to_dict(), "plan": plan_to_dict(plan)}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    words = torch.zeros(32 * 64 * (8 + 3 * 4) // 32, dtype=torch.int32)
    guard = {"nothing.rotary_emb.inv_freq": torch.zeros(0)}
    save_file({f"{stack}.up_proj_packed": words, **guard}, tmp_path / "model.safetensors")
    found = find_record(tmp_path)
    assert [layer["widths"] for layer in found["layers"]] == [{"8": 1, "4": 3}]
    assert found["sizes"] == [
        {"name": "model.layers", "bits": [4, 8], "before": 2.0 * 4 * 32 * 64, "after": 4.0 * len(words)}
    ]


def test_a_folder_without_a_report_says_what_to_give(tmp_path: Path, llava: Path) -> None:
    with pytest.raises(OSError, match="holds no report: give the folder of a model"):
        find_record(tmp_path)
    with pytest.raises(OSError, match="is no model quantized by this package"):
        find_record(llava)
