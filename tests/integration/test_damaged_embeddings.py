"""Damage to packed embeddings is named."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText


def damaged(folder: Path, target: Path, change=lambda tensors: None, replan=lambda plan: None) -> Path:
    settings = json.loads((folder / "config.json").read_text())
    replan(settings["quantization_config"]["plan"])
    (target / "config.json").write_text(json.dumps(settings))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"])
@pytest.mark.parametrize("which", ["tied", "untied"])
def test_damaged_embeddings_are_named(which: str, part: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    _, folder = request.getfixturevalue(which)
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith(f"embed_tokens.{part}")]
    assert len(names) == 1

    def shorten(tensors) -> None:
        tensors[names[0]] = tensors[names[0]][:-1].clone()

    for change in (shorten, lambda tensors: tensors.pop(names[0])):
        with pytest.raises(ValueError, match=rf"embed_tokens\.{part}"):
            AutoModelForImageTextToText.from_pretrained(damaged(folder, tmp_path, change))


def test_a_plan_that_packs_other_tables_is_refused(tied: tuple[nn.Module, Path], tmp_path: Path) -> None:
    entry = {"bits": 4, "group_size": 32, "sym": False}
    positions = "model.vision_tower.embeddings.position_embedding"
    with pytest.raises(ValueError, match="neither a linear layer nor an expert nor the embeddings"):
        AutoModelForImageTextToText.from_pretrained(
            damaged(tied[1], tmp_path, replan=lambda plan: plan.update({positions: entry}))
        )
    with pytest.raises(ValueError, match="in different ways"):
        AutoModelForImageTextToText.from_pretrained(damaged(tied[1], tmp_path, replan=lambda plan: plan.pop("lm_head")))
