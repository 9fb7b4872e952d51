import copy
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transformers_qaig import BitBudget, CalibrationConfig, QAIGConfig
from transformers_qaig.config import plan_source, validation
from transformers_qaig.config.devices import bytes_by_device
from transformers_qaig.quantizer import QAIGHfQuantizer
from transformers_qaig.recipes import RECIPES
from transformers_qaig.scheme import WeightScheme, fit_group_size


def test_defaults() -> None:
    config = QAIGConfig()
    assert (config.bits, config.group_size, config.sym, config.recipe.name) == (4, 128, False, "default")
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
        recipe={"name": "best", "rounding": "nearest", "asymmetric": 0.5},
        calibration={"min_coverage": 0.5},
    )
    assert QAIGConfig.from_dict(json.loads(config.to_json_string())) == config


def test_a_budget_in_json() -> None:
    config = QAIGConfig(budget=BitBudget(3.2, candidates=(8, 2, 4), cost="integrated_gradients", fuse=True))
    assert config.budget.candidates == (2, 4, 8)
    assert config.bits is None
    for use_diff in (True, False):
        assert QAIGConfig.from_dict(json.loads(config.to_json_string(use_diff))) == config
    assert QAIGConfig(budget=3.2).budget == BitBudget(bits=3.2)
    assert QAIGConfig(budget="3.5GiB").budget == BitBudget(size="3.5GiB")
    assert QAIGConfig(budget={"size": 10**9, "candidates": [3]}).budget == BitBudget(size=10**9, candidates=(3,))


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


def test_deepcopy_shares_runtime_objects() -> None:
    processor, dataset = lambda: None, [object()]
    config = QAIGConfig(bits=2, dataset=dataset, calibration={"processor": processor})
    other = copy.deepcopy(config)
    assert other == config
    assert other.calibration.processor is processor
    assert other.dataset is dataset


def test_a_plan_is_checked_once_and_copied_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    config = QAIGConfig(plan=rotated({"block": 64, "seed": 0}))
    monkeypatch.setattr(validation, "parse_plan", lambda plan: pytest.fail("checked again"))
    other = copy.deepcopy(config)
    assert other == config
    other.plan["layers.0.q_proj"]["rotation"]["seed"] = 1
    other.plan["layers.0.q_proj"]["bits"] = 2
    assert config.plan == rotated({"block": 64, "seed": 0})


def test_sizes_and_devices_of_max_memory_may_be_numpys() -> None:
    memory = {np.int64(0): np.int64(5), "cpu": "1KB", "disk": np.float32(2.0)}
    assert bytes_by_device(memory) == {0: 5, "cpu": 1000, "disk": 2}


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
        ({"recipe": {"roundin": "gptq"}}, "Did you mean 'rounding'"),
        ({"recipe": {"rounding": "gptqq"}}, "nearest"),
        ({"recipe": {"steps": 0}}, "positive"),
        ({"recipe": {"clipping": 1}}, "True or False"),
        ({"recipe": {"asymmetric": 2.0}}, "0 to 1"),
        ({"recipe": {"name": "defualt"}}, "default"),
        ({"recipe": {"drift": 1, "asymmetric": 1}}, "old and its new name"),
        ({"recipe": 3}, "recipe"),
        ({"recipe": {"name": "foo"}}, "recipe"),
        ({"calibration": 3}, "calibration"),
        ({"calibration": {"devise": "cpu"}}, "Did you mean 'device'"),
        ({"calibration": {"trust_remote_code": "yes"}}, "trust_remote_code"),
        ({"calibration": {"min_coverage": 1.5}}, "min_coverage"),
        ({"num_samples": 0}, "num_samples"),
        ({"seed": -1}, "seed"),
        ({"calibration": {"min_coverage": True}}, "min_coverage"),
        ({"recipe": ["fast"]}, "recipe"),
        ({"modules_to_not_convert": 3}, "modules_to_not_convert"),
        ({"overrides": {3: 4}}, "overrides"),
        ({"budget": {"bits": 3, "candidates": (2, "3")}}, "candidates"),
        ({"budget": {"bits": 3, "candidates": ([2],)}}, "candidates"),
        ({"budget": {"bits": 3, "candidates": 4}}, "candidates"),
        ({"budget": {"bits": 3, "candidates": []}}, "candidates"),
        ({"budget": {"bits": 3, "candidates": (2, 9)}}, "candidates"),
        ({"budget": {"bits": 3, "candidate": (2, 4)}}, "Did you mean 'candidates'"),
        ({"budget": {}}, "exactly one"),
        ({"budget": {"bits": 3, "size": "3GiB"}}, "exactly one"),
        ({"budget": float("inf")}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"budget": 0}, "budget"),
        ({"budget": True}, "budget"),
        ({"budget": 3_500_000_000}, r"BitBudget\(size="),
        ({"budget": "3.5 apples"}, "GiB"),
        ({"budget": "3"[:0]}, "GiB"),
        ({"budget": {"bits": 3, "cost": "fischer"}}, "fisher"),
        ({"budget": {"bits": 3, "fuse": 1}}, "fuse"),
        ({"bits": 4, "budget": 3.2}, "bits=4"),
        ({"bits": (2, 3, 4)}, "needs a budget"),
        ({"plan": {3: {"bits": 4, "group_size": 32, "sym": False}}}, "plan"),
        ({"calibration": {"work_dir": 3}}, "work_dir"),
        ({"calibration": {"work_dir": __file__}}, "work_dir"),
        ({"calibration": {"work_dir": ""}}, "work_dir"),
        ({"calibration": {"work_dir": "a\0b"}}, "work_dir.*null"),
        ({"calibration": {"work_dir": "\ud800"}}, "work_dir"),
        ({"calibration": {"work_dir": "x" * 5000}}, "work_dir.*too long"),
        ({"calibration": {"columns": "image"}}, "columns"),
        ({"calibration": {"columns": {"image": 3}}}, "columns.*'picture'.*3"),
        ({"calibration": {"columns": {0: "image"}}}, "columns"),
        ({"calibration": {"token": 3}}, "`token`.* got a int"),
        ({"calibration": {"token": ""}}, "`token`"),
        ({"calibration": {"processor": 3}}, "processor.*got 3"),
        ({"calibration": {"processor": {"image": 1}}}, "processor"),
        ({"calibration": {"processor": QAIGConfig}}, "processor.*AutoProcessor"),
        ({"calibration": {"processor": ""}}, "processor"),
        ({"calibration": {"device": 10**30}}, "device=10"),
        ({"calibration": {"device": True}}, "device=True"),
        ({"calibration": {"device": "cud"}}, "device"),
        ({"calibration": {"device": "meta"}}, "device"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
        ({"modules_to_not_convert": [""]}, "modules_to_not_convert"),
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
        ({"plan": "no/such/file.json"}, "no/such/file"),
        ({"plan": {"quant_method": "qaig"}}, "no plan"),
        ({"recipe": {"rotation": True}}, "rotation"),
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
        ({"recipe": {"rotation": "none"}, "activation_bits": 8}, False),
        ({"recipe": {"rotation": "all"}}, True),
        ({"recipe": {"name": "rtn", "rotation": "all"}}, True),
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
        QAIGConfig(format_version=3, needs_version="3.4", knob_of_the_future=1)
    with pytest.raises(ValueError, match=r"upgrade transformers-qaig to >= 3\.4"):
        QAIGConfig.from_dict({"format_version": 3, "needs_version": "3.4", "plan": "in a new form"})


def test_a_newer_format_without_a_release_says_upgrade() -> None:
    with pytest.raises(ValueError, match=r"upgrade transformers-qaig\.$"):
        QAIGConfig(format_version=99)


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
    assert WeightScheme(4, 128).stored_bits(256, 1024, 16) == 256 * 1024 * 4 + 256 * 8 * (16 + 4)
    assert WeightScheme(4, 128, sym=True).stored_bits(256, 1024, 16) == 256 * 1024 * 4 + 256 * 8 * 16


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
        {"budget": "1" * 200_000 + "x"},
        {"budget": {"size": 10**400}},
        {"budget": "9" * 30 + "TiB"},
        {"budget": 10**400},
        {"budget": {"x" * 10**6: 1}},
        {"budget": {"bits": 3, "cost": "x" * 10**6}},
        {"num_samples": 10**4000},
        {"group_size": 10**4000},
        {"seed": 10**4000},
        {"needs_version": {"a": 1}},
        {"overrides": {"x" * 10**6: 1}},
        {"modules_to_not_convert": {"x" * 10**6: 1}},
        {"recipe": "x" * 10**6},
        {"recipe": {"x" * 10**6: 1}},
        {"recipe": {"name": ["x"]}},
        {"stages": {"x" * 10**6: 1}},
        {"plan": {"x" * 10**6: 1}},
        {"x" * 10**6: 1},
        {"self": 1},
    ],
)
def test_no_setting_of_a_file_costs_time_or_a_long_message(setting: dict[str, Any]) -> None:
    start = time.perf_counter()
    with pytest.raises((ValueError, TypeError)) as error:
        QAIGConfig.from_dict({"format_version": 1, **setting})
    assert time.perf_counter() - start < 1
    assert len(str(error.value)) < 1000
    assert next(iter(setting)).replace("stages", "recipe")[:50] in str(error.value)


def test_what_a_caller_set_in_a_config_is_checked_before_quantizing() -> None:
    config = QAIGConfig()
    config.bits = 99
    with pytest.raises(ValueError, match=r"`bits` .*99"):
        QAIGHfQuantizer(config, pre_quantized=False)


SCHEME = {"bits": 3, "group_size": -1, "sym": True}


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("recipe", "gptq", RECIPES["gptq"]),
        ("budget", 3.5, BitBudget(bits=3.5)),
        ("calibration", {"min_coverage": 0.5}, CalibrationConfig(min_coverage=0.5)),
        ("plan", QAIGConfig(plan={"a.b": SCHEME}), {"a.b": SCHEME}),
    ],
)
def test_an_attribute_takes_what_the_argument_takes(name: str, given: object, kept: object) -> None:
    config = QAIGConfig()
    setattr(config, name, given)
    assert getattr(config, name) == kept
    assert copy.deepcopy(config) == config
    assert repr(config)


def test_a_budget_set_later_takes_the_place_of_the_default_width() -> None:
    config = QAIGConfig()
    config.budget = 3.2
    config.validate()
    assert (config.bits, copy.deepcopy(config).bits) == (None, None)
    config.update(budget=None)
    assert config.bits == 4
    chosen = QAIGConfig(bits=4)
    chosen.budget = 3.2
    with pytest.raises(ValueError, match=r"bits=4.*budget"):
        chosen.validate()


def test_updating_takes_every_name_and_returns_what_it_does_not_know() -> None:
    config = QAIGConfig(calibration={"device": "cpu"})
    assert config.update(bits=3, calibration={"min_coverage": 0.5}, other=1) == {"other": 1}
    assert (config.bits, config.calibration) == (3, CalibrationConfig(min_coverage=0.5))


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"bits": 4}, "`bits=4` without effect beside `plan`.*leave it out"),
        ({"group_size": 128}, "`group_size=128`"),
        ({"bits": 3, "group_size": 64, "sym": True}, "`bits=3` and `group_size=64` and `sym=True`.*leave them out"),
        ({"bits": 3, "group_size": 64, "vision_bits": 4}, "`bits=3` without effect"),
    ],
)
def test_widths_beside_a_plan_are_named_with_it(
    beside: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    QAIGConfig(plan={"a.b": SCHEME}, **beside)
    (record,) = caplog.records
    assert re.search(named, record.getMessage())


def test_a_plan_alone_or_from_a_file_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    config = QAIGConfig(plan={"a.b": SCHEME}, vision_bits=4, group_size=64)
    saved = QAIGConfig(bits=3, group_size=64).to_dict() | {"plan": {"a.b": SCHEME}}
    for again in (QAIGConfig(**saved), QAIGConfig.from_dict(saved)):
        assert again.bits == 3
    assert QAIGConfig(plan=config).plan == config.plan
    assert not caplog.records


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_names_beside_a_mapping_are_used() -> None:
    assert QAIGConfig.from_dict({}, target_bits=3.0).budget == BitBudget(bits=3.0)
