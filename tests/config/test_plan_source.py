"""Where a plan is read from, and what may be set beside it."""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.config.plans import ENTRY, SCHEME, rotated
from transformers_qaig import QAIGConfig
from transformers_qaig.config import plan_source, validation


def test_a_plan_from_a_mapping_a_config_a_file_or_a_folder(tmp_path: Path) -> None:
    plan = {"a.b": {"bits": 3, "group_size": -1, "sym": True}}
    config = QAIGConfig(plan=plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": json.loads(config.to_json_string())}))
    for source in (config, config.to_dict(), tmp_path, tmp_path / "config.json", str(tmp_path / "plan.json")):
        assert QAIGConfig(plan=source).plan == plan
    config.plan["a.b"]["bits"] = 4  # a copy: what one config holds is not another's
    assert plan["a.b"]["bits"] == 3


def test_a_plan_is_checked_once_and_copied_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    config = QAIGConfig(plan=rotated({"block": 64, "seed": 0}))
    monkeypatch.setattr(validation, "parse_plan", lambda plan: pytest.fail("checked again"))
    other = copy.deepcopy(config)
    assert other == config
    other.plan["layers.0.q_proj"]["rotation"]["seed"] = 1
    other.plan["layers.0.q_proj"]["bits"] = 2
    assert config.plan == rotated({"block": 64, "seed": 0})


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
    (tmp_path / "double.json").write_text(json.dumps({"a.b": ENTRY, "a.c": ENTRY}).replace("a.c", "a.b"))
    with pytest.raises(ValueError, match=r"one of its objects has 'a\.b' twice"):
        QAIGConfig(plan=tmp_path / "double.json")


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
