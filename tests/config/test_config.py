import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transformers_qaig import QAIGConfig
from transformers_qaig.config import plan_source, validation
from transformers_qaig.config.devices import bytes_by_device
from transformers_qaig.quantizer import QAIGHfQuantizer
from transformers_qaig.scheme import fit_group_size, stored_bits


def test_defaults() -> None:
    config = QAIGConfig()
    assert (config.bits, config.group_size, config.sym, config.recipe) == (4, 128, False, "default")
    assert config.quant_method == "qaig"


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
        stages={"rounding": "nearest", "drift": 0.5},
    )
    assert QAIGConfig.from_dict(json.loads(config.to_json_string())) == config


def test_a_budget_in_json() -> None:
    config = QAIGConfig(bits=(8, 2, 4), target_bits=3.2, cost="path", fuse_groups=True)
    assert config.bits == [2, 4, 8]
    assert QAIGConfig.from_dict(json.loads(config.to_json_string())) == config
    assert QAIGConfig(target_size="3.5GiB").bits == [2, 3, 4, 8]
    assert QAIGConfig().bits == 4


def test_a_plan_from_a_mapping_a_config_a_file_or_a_folder(tmp_path: Path) -> None:
    plan = {"a.b": {"bits": 3, "group_size": -1, "sym": True}}
    config = QAIGConfig(plan=plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": json.loads(config.to_json_string())}))
    for source in (config, config.to_dict(), tmp_path, tmp_path / "config.json", str(tmp_path / "plan.json")):
        assert QAIGConfig(plan=source).plan == plan
    config.plan["a.b"]["bits"] = 4  # a copy: what one config holds is not another's
    assert plan["a.b"]["bits"] == 3


def test_runtime_fields_stay_out_of_json() -> None:
    class Processor: ...

    config = QAIGConfig(
        processor=Processor(),
        dataset=[object()],
        dataset_columns={"image": "img"},
        token="secret",
        trust_remote_code=True,
        work_dir="/tmp/x",
        calibration_device="cpu",
        max_memory={0: "1GiB"},
        offload_folder="/tmp/y",
    )
    text = config.to_json_string()
    assert "secret" not in text
    assert "/tmp" not in text
    assert not {"processor", "dataset", "token", "work_dir", "offload_folder"} & set(dict(config))


def test_deepcopy_shares_runtime_objects() -> None:
    processor, dataset = object(), [object()]
    config = QAIGConfig(bits=2, processor=processor, dataset=dataset)
    other = copy.deepcopy(config)
    assert other == config
    assert other.processor is processor
    assert other.dataset is dataset


def test_a_plan_is_checked_once_and_copied_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    config = QAIGConfig(plan=rotated({"block": 64, "seed": 0}))
    monkeypatch.setattr(validation, "check_plan", lambda plan: pytest.fail("checked again"))
    other = copy.deepcopy(config)
    assert other == config
    other.plan["layers.0.q_proj"]["rotation"]["seed"] = 1
    other.plan["layers.0.q_proj"]["bits"] = 2
    assert config.plan == rotated({"block": 64, "seed": 0})


def test_sizes_and_devices_of_max_memory_may_be_numpys() -> None:
    memory = {np.int64(0): np.int64(5), "cpu": "1KB", "disk": np.float32(2.0)}
    assert bytes_by_device(memory) == {0: 5, "cpu": 1000, "disk": 2}
    assert QAIGConfig(max_memory=memory).max_memory is memory


def rotated(rotation: Any) -> dict[str, Any]:
    return {"layers.0.q_proj": {"bits": 4, "group_size": 64, "sym": False, "rotation": rotation}}


def nested(levels: int) -> list[Any]:
    """A list in a list in a list..."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"bits": 1}, "bits"),
        ({"bits": 9}, "bits"),
        ({"bits": 3.0}, "bits"),
        ({"bits": True}, "bits"),
        ({"group_size": 16}, "group_size"),
        ({"group_size": 0}, "group_size"),
        ({"sym": 1}, "sym"),
        ({"recipe": "defualt"}, "default"),
        ({"stages": {"roundin": "gptq"}}, "rounding"),
        ({"stages": {"rounding": "gptqq"}}, "nearest"),
        ({"stages": {"steps": 0}}, "positive"),
        ({"stages": {"clipping": 1}}, "True or False"),
        ({"stages": {"drift": 2.0}}, "0 to 1"),
        ({"stages": "gptq"}, "stages"),
        ({"min_coverage": 1.5}, "min_coverage"),
        ({"num_samples": 0}, "num_samples"),
        ({"seed": -1}, "seed"),
        ({"min_coverage": True}, "min_coverage"),
        ({"recipe": ["fast"]}, "recipe"),
        ({"modules_to_not_convert": 3}, "modules_to_not_convert"),
        ({"overrides": {3: 4}}, "overrides"),
        ({"bits": (2, "3"), "target_bits": 3}, "bits"),
        ({"bits": ([2],), "target_bits": 3}, "bits"),
        ({"target_bits": float("inf")}, "target_bits"),
        ({"target_bits": float("nan")}, "target_bits"),
        ({"plan": {3: {"bits": 4, "group_size": 32, "sym": False}}}, "plan"),
        ({"work_dir": 3}, "work_dir"),
        ({"work_dir": __file__}, "work_dir"),
        ({"work_dir": ""}, "work_dir"),
        ({"work_dir": "a\0b"}, "work_dir.*null"),
        ({"work_dir": "\ud800"}, "work_dir"),
        ({"work_dir": "x" * 5000}, "work_dir.*too long"),
        ({"offload_folder": f"{__file__}/x"}, "offload_folder"),
        ({"offload_folder": True}, "offload_folder"),
        ({"max_memory": "1GiB"}, "max_memory"),
        ({"max_memory": {"cpu": "9" * 400 + "GB"}}, "max_memory.*cpu"),
        ({"max_memory": {"cpu": 10**400}}, "max_memory.*cpu"),
        ({"max_memory": {np.int64(-1): 1}}, "max_memory.*-1"),
        ({"dataset_columns": "image"}, "dataset_columns"),
        ({"calibration_device": "cud"}, "calibration_device"),
        ({"calibration_device": "meta"}, "calibration_device"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
        ({"overrides": {"*.o_proj": 12}}, "o_proj"),
        ({"overrides": {"*.o_proj": {"bit": 4}}}, "bit"),
        ({"overrides": {"*.o_proj": torch.ones(2, device="meta")}}, r"overrides\['\*\.o_proj'\].*meta"),
        ({"overrides": {"*.o_proj": {"bits": float("nan")}}}, r"overrides\['\*\.o_proj'\]\['bits'\].*nan"),
        ({"plan": {}}, "plan"),
        ({"plan": {"a": {"bits": 3}}}, r"plan\['a'\].*group_size"),
        ({"plan": {"a.b": {"bits": 1e400, "group_size": 32, "sym": True}}}, r"plan\['a\.b'\]\['bits'\].*inf"),
        ({"plan": {"a.b": {"bits": 9, "group_size": 32, "sym": True}}}, r"plan\['a\.b'\]: `bits`"),
        ({"plan": {"a.b": nested(10**5)}}, r"plan\['a\.b'\]\[0\].*nested"),
        ({"overrides": {"a.b": nested(10**5)}}, r"overrides\['a\.b'\]\[0\].*nested"),
        ({"activation_bits": 4}, "activation_bits"),
        ({"vision_bits": 1}, "vision_bits"),
        ({"lm_head_bits": True}, "lm_head_bits"),
        ({"embedding_bits": "4"}, "embedding_bits"),
        ({"quant_method": "gptq"}, "quant_method"),
        ({"bits": (2, 3, 4)}, "target_bits"),
        ({"bits": 4, "target_bits": 3.2}, "bits=4"),
        ({"bits": [], "target_bits": 3.2}, "bits"),
        ({"bits": (2, 9), "target_bits": 3.2}, "bits"),
        ({"target_bits": 0}, "target_bits"),
        ({"target_bits": "3"}, "target_bits"),
        ({"target_size": "3.5 apples"}, "GiB"),
        ({"target_bits": 3, "target_size": "3GiB"}, "one of them"),
        ({"cost": "fischer"}, "fisher"),
        ({"fuse_groups": 1}, "fuse_groups"),
        ({"plan": "no/such/file.json"}, "no/such/file"),
        ({"plan": {"quant_method": "qaig"}}, "no plan"),
        ({"stages": {"rotation": True}}, "rotation"),
        ({"overrides": {"*": {"rotation": None}}}, "rotation"),
        ({"plan": rotated({"block": 64, "seed": 0, "axis": 1})}, "exactly block and seed"),
        ({"plan": rotated({"block": 64})}, "exactly block and seed"),
        ({"plan": rotated(64)}, "exactly block and seed"),
        ({"plan": rotated({"block": 48, "seed": 0})}, "block of .*48"),
        ({"plan": rotated({"block": 64.0, "seed": 0})}, "block of"),
        ({"plan": rotated({"block": 64, "seed": -1})}, "seed from 0"),
        ({"plan": rotated({"block": 64, "seed": 2**63})}, "seed from 0"),
    ],
)
def test_bad_values_are_refused_by_name(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        QAIGConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "rotates"),
    [
        ({}, False),
        ({"recipe": "default"}, False),
        ({"recipe": "default", "activation_bits": 8}, True),
        ({"recipe": "default", "activation_bits": 8, "stages": {"rotation": "none"}}, False),
        ({"recipe": "default", "stages": {"rotation": "all"}}, True),
        ({"recipe": "rtn", "stages": {"rotation": "all"}}, True),
        ({"recipe": "fast", "activation_bits": 8}, False),
    ],
)
def test_inputs_are_rotated_as_asked_or_as_the_recipe_says(arguments: dict, rotates: bool) -> None:
    config = QAIGConfig(**arguments)
    assert config.rotates == rotates
    assert QAIGConfig.from_dict(json.loads(config.to_json_string())).rotates == rotates


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="group_size"):
        QAIGConfig(groupsize=64)


def test_newer_format_says_upgrade_even_with_unknown_keys() -> None:
    with pytest.raises(ValueError, match=r"upgrade transformers-qaig to >= 3\.4"):
        QAIGConfig(format_version=2, needs_version="3.4", knob_of_the_future=1)


@pytest.mark.parametrize(
    ("width", "wanted", "used"),
    [
        (4096, 128, 128),
        (576, 128, 96),  # 576 = 4.5 * 128
        (576, 64, 64),
        (3420, 128, 114),
        (4304, 64, -1),  # 4304 = 16 * 269
        (64, 128, -1),
        (128, 128, -1),
        (4096, -1, -1),
    ],
)
def test_group_size_fits_the_width(width: int, wanted: int, used: int) -> None:
    assert fit_group_size(width, wanted) == used


def test_stored_bits_counts_scales_and_zero_points() -> None:
    entry = {"bits": 4, "group_size": 128, "sym": False}
    assert stored_bits(entry, 256, 1024, 16) == 256 * 1024 * 4 + 256 * 8 * (16 + 4)
    assert stored_bits({**entry, "sym": True}, 256, 1024, 16) == 256 * 1024 * 4 + 256 * 8 * 16


ENTRY = {"bits": 4, "group_size": 32, "sym": False}
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
}


@pytest.mark.parametrize("name", FOR_ONE_RUN)
def test_what_is_for_one_run_is_never_read_from_a_checkpoint(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = QAIGConfig.from_dict({"plan": {"a.b": ENTRY}, name: FOR_ONE_RUN[name]})
    assert getattr(config, name) == getattr(QAIGConfig(), name)
    assert name in caplog.text
    with pytest.raises(TypeError, match=rf"QAIGConfig\({name}=...\)"):  # a mapping of the user's own
        QAIGConfig.from_dict({"bits": 3, name: FOR_ONE_RUN[name]})


@pytest.mark.parametrize("plan", ["/dev/zero", "plan.json", 3, [ENTRY], ""])
def test_a_plan_in_json_is_a_mapping(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({"a.b": ENTRY}))
    with pytest.raises(ValueError, match=r"`plan` in a config\.json"):
        QAIGConfig.from_dict({"plan": plan})


def test_a_plan_is_read_from_regular_files_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "large.json").write_text(json.dumps({"a.b": ENTRY}) + " " * 1000)
    monkeypatch.setattr(plan_source, "LARGEST_PLAN", 1000)
    for source in ("/dev/zero", tmp_path / "fifo", tmp_path / "large.json", tmp_path / "none.json"):
        with pytest.raises(ValueError, match=r"`plan`.*cannot be read"):
            QAIGConfig(plan=source)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"`plan`.*cannot be read"):
        QAIGConfig(plan=tmp_path / "deep.json")


@pytest.mark.parametrize(
    "setting",
    [
        {"target_size": "1" * 200_000 + "x"},
        {"target_size": 10**400},
        {"target_size": "9" * 30 + "TiB"},
        {"target_bits": 10**400},
        {"num_samples": 10**4000},
        {"group_size": 10**4000},
        {"seed": 10**4000},
        {"needs_version": {"a": 1}},
        {"overrides": {"x" * 10**6: 1}},
        {"modules_to_not_convert": {"x" * 10**6: 1}},
        {"recipe": "x" * 10**6},
        {"stages": {"x" * 10**6: 1}},
        {"plan": {"x" * 10**6: 1}},
        {"x" * 10**6: 1},
        {"self": 1},
    ],
)
def test_no_setting_of_a_file_costs_time_or_a_long_message(setting: dict[str, Any]) -> None:
    choices = {"bits": [2, 4]} if set(setting) & {"target_size", "target_bits"} else {}
    start = time.perf_counter()
    with pytest.raises((ValueError, TypeError)) as error:
        QAIGConfig.from_dict({**choices, **setting})
    assert time.perf_counter() - start < 1
    assert len(str(error.value)) < 1000
    assert next(iter(setting))[:50] in str(error.value)


def test_what_a_caller_set_in_a_config_is_checked_before_quantizing() -> None:
    config = QAIGConfig()
    config.bits = 99
    with pytest.raises(ValueError, match=r"`bits` .*99"):
        QAIGHfQuantizer(config, pre_quantized=False)
