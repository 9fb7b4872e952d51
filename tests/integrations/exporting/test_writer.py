"""Files of an export: shards within a size, an index that names every tensor, and what stands beside them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from transformers_qaig.integrations.exporting import writer
from transformers_qaig.integrations.exporting.writer import ShardWriter, copy_beside, model_config

TENSORS = {name: torch.full((4,), float(number)) for number, name in enumerate("abcde")}  # of 16 bytes each


def written(folder: Path, tensors: dict[str, Tensor] = TENSORS) -> list[str]:
    shards = ShardWriter(folder, {"made": "here"})
    for name, tensor in tensors.items():
        shards.add(name, tensor)
    shards.finish()
    return sorted(file.name for file in folder.iterdir())


def test_what_fits_is_one_file_without_an_index(tmp_path: Path) -> None:
    assert written(tmp_path) == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        assert stored.metadata() == {"format": "pt", "made": "here"}


def test_shards_keep_within_the_size_and_the_index_names_every_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "LARGEST_SHARD", 32)
    shards = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    assert written(tmp_path) == [*shards, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 16
    assert index["weight_map"] == dict(zip("abcde", (shards[0], shards[0], shards[1], shards[1], shards[2])))
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name])


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_SHARD", 8)
    assert len(written(tmp_path)) == 5 + 1


def test_two_tensors_of_one_name_are_refused_also_across_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "LARGEST_SHARD", 16)
    shards = ShardWriter(tmp_path)
    for name in ("a", "b"):
        shards.add(name, TENSORS[name])
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"two tensors of the model would be called {name}"):
            shards.add(name, TENSORS[name])


def test_settings_of_the_packed_model_are_replaced_everywhere() -> None:
    config = {
        "model_type": "vlm",
        "quantization_config": {"bits": 3},
        "text_config": {"hidden_size": 8, "quantization_config": {"bits": 3}},
        "vision_config": {"depth": 2},
    }
    plain = {"model_type": "vlm", "text_config": {"hidden_size": 8}, "vision_config": {"depth": 2}}
    assert model_config(config, None) == plain
    assert model_config(config, {"quant_method": "awq"}) == {**plain, "quantization_config": {"quant_method": "awq"}}
    assert config["text_config"] == {"hidden_size": 8, "quantization_config": {"bits": 3}}


def test_weights_are_never_copied_beside_an_export(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("LICENSE", "generation_config.json", "LICENSE.safetensors", "model.safetensors", "notes.txt"):
        (source / name).write_text(name)
    (source / "NOTICE.d").mkdir()
    copy_beside(source, target)
    assert sorted(file.name for file in target.iterdir()) == ["LICENSE", "generation_config.json"]
