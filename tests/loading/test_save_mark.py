"""A checkpoint whose shards are of two saves."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.lifecycle import FAST, logits
from transformers_qaig import QAIGConfig
from transformers_qaig.loading.save_mark import save_mark


@pytest.fixture(scope="module")
def sharded(quantized: tuple[nn.Module, Path], llava: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two quantizations of one model, alike but for their values."""
    folders = [tmp_path_factory.mktemp("save") for _ in range(2)]
    other = QAIGConfig(bits=3, recipe="rtn", **FAST)
    models = quantized[0], AutoModelForImageTextToText.from_pretrained(llava, quantization_config=other)
    for folder, model in zip(folders, models):
        model.save_pretrained(folder, max_shard_size="100KB")
    return folders


def test_shards_of_two_saves_are_refused(sharded: list[Path], tmp_path: Path) -> None:
    shutil.copytree(sharded[0], tmp_path, dirs_exist_ok=True)
    first, second, *_ = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    shutil.copy(sharded[1] / second, tmp_path)
    with pytest.raises(ValueError, match=f"{first} and {second} are of two different saves"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_shards_without_a_mark_are_loaded(
    sharded: list[Path], llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    shutil.copytree(sharded[0], tmp_path, dirs_exist_ok=True)
    file = min(tmp_path.glob("*.safetensors"))
    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    save_file(tensors, file, {"format": "pt"})
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(logits(model, llava), logits(quantized[0], llava))


def test_a_model_has_the_same_mark_whenever_it_is_saved() -> None:
    tensors = {
        "a": torch.arange(100_000.0),
        "b": torch.empty(0),
        "c": torch.tensor(1),
        "d": torch.empty(3, device="meta"),
    }
    mark = save_mark(tensors)
    assert save_mark({name: tensor.clone() for name, tensor in reversed(tensors.items())}) == mark
    for change in ({"a": tensors["a"] * 2}, {"c": torch.tensor(2)}, {"e": tensors["c"]}):
        assert save_mark({**tensors, **change}) != mark
