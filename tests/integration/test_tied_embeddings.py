"""Embeddings and head that are one tensor stay one: in memory, on disk, over devices."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.integration.whole_model import are_tied_in_memory
from tests.lifecycle import logits
from tests.tolerance import assert_close, terms_of
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, CPU_LAYOUT
from transformers_qaig.kernels import extension
from transformers_qaig.structure import find_input_embeddings, find_lm_head


def test_tied_tables_are_one_tensor_in_memory_and_on_disk(tied: tuple[nn.Module, Path], gemma3: Path) -> None:
    model, folder = tied
    with safe_open(folder / "model.safetensors", "pt") as stored:
        keys = [key for key in stored.keys() if "lm_head" in key or "embed_tokens" in key]
    assert len(keys) == 4
    assert all("embed_tokens" in key for key in keys)
    for one in (model, AutoModelForImageTextToText.from_pretrained(folder)):
        head, table = find_lm_head(one).module, find_input_embeddings(one).module
        assert are_tied_in_memory(one)
        assert head.layout == table.layout == (CPU_LAYOUT if extension.load() else CHECKPOINT_LAYOUT)
        one.tie_weights()
        assert are_tied_in_memory(one)
        one.to(torch.float32)
        assert are_tied_in_memory(one)
        assert torch.equal(logits(one, gemma3), logits(model, gemma3))


def test_tied_tables_in_shards_and_saved_again(tied: tuple[nn.Module, Path], gemma3: Path, tmp_path: Path) -> None:
    model, folder = tied
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "shards")
    assert torch.equal(logits(again, gemma3), logits(model, gemma3))
    again.save_pretrained(tmp_path / "again")
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_keeps_the_tie(tied: tuple[nn.Module, Path], gemma3: Path, device_map: str) -> None:
    again = AutoModelForImageTextToText.from_pretrained(tied[1], device_map=device_map)
    assert are_tied_in_memory(again)
    assert torch.equal(logits(again, gemma3), logits(tied[0], gemma3))


@pytest.mark.parametrize("which", ["tied", "untied"])
@pytest.mark.parametrize("offloaded", ["tables", "tower"])
def test_offloaded_to_disk(which: str, offloaded: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, folder = request.getfixturevalue(which)
    source = request.getfixturevalue({"tied": "gemma3", "untied": "llava"}[which])
    disk = {"tables": ("lm_head", "embed_tokens"), "tower": ("vision_tower", "multi_modal_projector")}[offloaded]
    parts = [f"model.language_model.{name}" for name, _ in model.model.language_model.named_children()]
    parts += ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    device_map = {part: "disk" if part.endswith(disk) else "cpu" for part in parts}
    again = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert any(p.device.type == "meta" for p in again.parameters())
    assert_close(logits(again, source), logits(model, source), terms_of(model))  # weights lie as the file has them
    again.save_pretrained(tmp_path / "again")
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(reloaded, source), logits(model, source))
