"""A layer is rotated as it was when its weight was saved, whatever config.json says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

from tests.lifecycle import FAST, logits
from transformers_qaig import QAIGConfig

ROTATED = {"rotation": {"block": 32, "seed": 0}}


@pytest.fixture(scope="session")
def rotated(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rotated")
    settings = QAIGConfig(recipe={"name": "rtn", "rotation": "a8"}, activation_bits=8, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=settings)
    assert all("rotation" in entry for entry in model.config.quantization_config.plan.values())
    model.save_pretrained(folder)
    return folder


def edited(source: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"]["plan"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("rotation"),
        lambda entry: entry.update(rotation=None),
        lambda entry: entry["rotation"].update(seed=1),
        lambda entry: entry["rotation"].update(block=16),
    ],
)
def test_another_rotation_in_the_config_is_an_error_that_names_the_layer(rotated: Path, tmp_path: Path, change) -> None:
    path = "model.language_model.layers.1.mlp.up_proj"
    folder = edited(rotated, tmp_path / "x", lambda plan: change(plan[path]))
    with pytest.raises(ValueError, match=rf"{path}.*rotation"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_a_rotation_that_the_weights_do_not_have_is_an_error(quantized: tuple[Any, Path], tmp_path: Path) -> None:
    folder = edited(quantized[1], tmp_path / "x", lambda plan: next(iter(plan.values())).update(ROTATED))
    with pytest.raises(ValueError, match="no rotation"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_other_classes_and_saving_again_keep_the_record(rotated: Path, llava: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(rotated).save_pretrained(tmp_path / "base")
    AutoModel.from_pretrained(tmp_path / "base")
    AutoModelForImageTextToText.from_pretrained(rotated).save_pretrained(tmp_path / "again", max_shard_size="60KB")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again, llava), logits(AutoModelForImageTextToText.from_pretrained(rotated), llava))
    plan = json.loads((tmp_path / "base" / "config.json").read_text())["quantization_config"]["plan"]
    path = next(iter(plan))
    folder = edited(tmp_path / "base", tmp_path / "x", lambda plan: plan[path].pop("rotation"))
    with pytest.raises(ValueError, match=rf"{path} no rotation"):
        AutoModel.from_pretrained(folder)


def test_files_without_a_record_load(rotated: Path, tmp_path: Path) -> None:
    """As 0.1.0 wrote them."""
    shutil.copytree(rotated, tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})
    AutoModelForImageTextToText.from_pretrained(tmp_path / "x")


@pytest.mark.parametrize("record", ["", "[]", "{", "[" * 10_000])
def test_a_damaged_record_is_named(rotated: Path, tmp_path: Path, record: str) -> None:
    shutil.copytree(rotated, tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "qaig_rotations": record})
    with pytest.raises(ValueError, match="qaig_rotations"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "x")
