"""What of a config is in JSON, and what is read from there."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.config.plans import ENTRY
from transformers_qaig import BitBudget, CalibrationConfig, QAIGConfig


def test_json_round_trip() -> None:
    config = QAIGConfig(
        bits=3,
        group_size=64,
        sym=True,
        overrides={"*.down_proj": 4, "*.o_proj": {"group_size": -1}},
        modules_to_not_convert=["*.layers.0.*"],
        vision_bits=8,
        lm_head_bits=6,
        embedding_bits=4,
        plan={"a.b": {"bits": 3, "group_size": -1, "sym": True}},
        recipe={"name": "best", "rounding": "nearest", "asymmetric": 0.5},
        calibration={"min_coverage": 0.5},
    )
    assert QAIGConfig.from_dict(json.loads(config.to_json_string())) == config


def test_widths_beside_a_plan_are_those_of_the_plan() -> None:
    entry = {"bits": 3, "group_size": 64, "sym": True}
    mixed = {
        "model.mlp.up_proj": {**entry, "bits": 8},
        "model.experts.*.up_proj": entry,
        "model.experts.0.down_proj": entry,
    }
    config = QAIGConfig(plan=mixed)
    written = json.loads(config.to_json_string())
    assert {name: written[name] for name in entry} == entry
    assert QAIGConfig.from_dict(written) == config
    assert QAIGConfig(bits=8, plan=mixed).to_dict()["bits"] == 8  # true of one weight
    assert QAIGConfig(vision_bits=4, group_size=32, plan=mixed).to_dict()["group_size"] == 32  # to be read yet


def test_a_budget_in_json() -> None:
    config = QAIGConfig(budget=BitBudget(3.2, candidates=(8, 2, 4), cost="integrated_gradients", fuse=True))
    assert config.budget.candidates == (2, 4, 8)
    assert config.bits is None
    for use_diff in (True, False):
        assert QAIGConfig.from_dict(json.loads(config.to_json_string(use_diff))) == config
    assert QAIGConfig(budget=3.2).budget == BitBudget(bits=3.2)
    assert QAIGConfig(budget="3.5GiB").budget == BitBudget(size="3.5GiB")
    assert QAIGConfig(budget={"size": 10**9, "candidates": [3]}).budget == BitBudget(size=10**9, candidates=(3,))


def test_runtime_fields_stay_out_of_json() -> None:
    class Processor:
        def __call__(self) -> None: ...

    config = QAIGConfig(
        dataset=[object()],
        calibration=CalibrationConfig(
            processor=Processor(),
            columns={"image": "img"},
            token="secret",
            trust_remote_code=True,
            work_dir="/tmp/x",
            device="cpu",
        ),
    )
    text = config.to_json_string(use_diff=False)
    assert "secret" not in text + repr(config) + repr(config.calibration)
    assert "/tmp" not in text
    assert not {"calibration", "dataset"} & set(dict(config))


def test_newer_format_says_upgrade_even_with_unknown_keys() -> None:
    with pytest.raises(ValueError, match=r"upgrade transformers-qaig to >= 3\.4"):
        QAIGConfig(format_version=3, needs_version="3.4", knob_of_the_future=1)
    with pytest.raises(ValueError, match=r"upgrade transformers-qaig to >= 3\.4"):
        QAIGConfig.from_dict({"format_version": 3, "needs_version": "3.4", "plan": "in a new form"})


def test_a_newer_format_without_a_release_says_upgrade() -> None:
    with pytest.raises(ValueError, match=r"upgrade transformers-qaig\.$"):
        QAIGConfig(format_version=99)


def test_a_known_format_that_needs_a_newer_release_says_upgrade() -> None:
    with pytest.raises(ValueError, match=r"needs transformers-qaig >= 77\.0 .*upgrade"):
        QAIGConfig.from_dict({"format_version": 1, "needs_version": "77.0"})
    with pytest.raises(ValueError, match="`needs_version` must be a version"):
        QAIGConfig.from_dict({"format_version": 1, "needs_version": "newest"})
    assert QAIGConfig.from_dict({"format_version": 1, "needs_version": "0.1.0"}) == QAIGConfig()


FOR_ONE_RUN = {
    "processor": "someone/else",
    "trust_remote_code": True,
    "token": "x",
    "work_dir": "/tmp/x",
    "offload_folder": "/tmp/y",
    "dataset": "someone/else",
    "dataset_columns": {"image": "x"},
    "calibration_device": "cuda:7",
    "max_memory": {"cpu": "1GiB"},
    "calibration": {"processor": "someone/else"},
}


@pytest.mark.parametrize("name", FOR_ONE_RUN)
def test_what_is_for_one_run_is_never_read_from_a_checkpoint(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = QAIGConfig.from_dict({"plan": {"a.b": ENTRY}, name: FOR_ONE_RUN[name]})
    assert (config.calibration, config.dataset) == (CalibrationConfig(), None)
    assert (config.max_memory, config.offload_folder) == (None, None)
    assert name in caplog.text
    with pytest.raises(TypeError, match=rf"`{name}` is for one run.*: write \w+\("):  # a mapping of the user's own
        QAIGConfig.from_dict({"bits": 3, name: FOR_ONE_RUN[name]})


@pytest.mark.parametrize("plan", ["/dev/zero", "plan.json", 3, [ENTRY], ""])
def test_a_plan_in_json_is_a_mapping(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({"a.b": ENTRY}))
    with pytest.raises(ValueError, match=r"`plan` in a config\.json"):
        QAIGConfig.from_dict({"plan": plan})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_names_beside_a_mapping_are_used() -> None:
    assert QAIGConfig.from_dict({}, target_bits=3.0).budget == BitBudget(bits=3.0)
