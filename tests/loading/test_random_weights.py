"""Weights that no file holds are not quantized as if they were the model's."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from transformers_qaig import QAIGConfig
from transformers_qaig.calibration import pipeline

RTN = QAIGConfig(bits=4, group_size=32, recipe="rtn")


@pytest.fixture
def copied(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a model, whose calibration must not begin."""
    monkeypatch.setattr(pipeline, "calibrate", lambda *_: pytest.fail("calibrated"))
    return shutil.copytree(llava, tmp_path / "copied")


def test_a_weight_in_no_file_is_an_error_that_names_it(copied: Path) -> None:
    file = copied / "model.safetensors"
    tensors = load_file(file)
    lost = [name for name in tensors if name.endswith(("layers.1.mlp.down_proj.weight", "layers.1.mlp.up_proj.weight"))]
    assert len(lost) == 2
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, file, {"format": "pt"})
    named = r"model\.language_model\.layers\.1\.mlp\.down_proj and 1 more would be packed, but no file"
    with pytest.raises(ValueError, match=named):
        AutoModelForImageTextToText.from_pretrained(copied, quantization_config=RTN)


def test_a_weight_of_another_shape_is_an_error_even_if_transformers_ignores_it(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 32
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj and 5 more would be packed"):
        AutoModelForImageTextToText.from_pretrained(copied, quantization_config=RTN, ignore_mismatched_sizes=True)


def test_a_missing_weight_that_stays_as_it_is_is_left_to_transformers(llava: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(llava, tmp_path / "copied")
    tensors = load_file(copied / "model.safetensors")
    save_file({k: t for k, t in tensors.items() if "lm_head" not in k}, copied / "model.safetensors", {"format": "pt"})
    AutoModelForImageTextToText.from_pretrained(copied, quantization_config=RTN)
