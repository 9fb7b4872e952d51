"""Tensors that the class has no module for stay in the file, or are named."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.families import save
from tests.lifecycle import logits
from transformers_qaig import QAIGConfig
from transformers_qaig.loading.unused_tensors import find_unused, report_unused
from transformers_qaig.plan.build import list_schemes

RTN = {"bits": 4, "group_size": 32, "recipe": "rtn"}


def with_extra(folder: Path, extra: dict[str, Tensor]) -> Path:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **extra}, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def extra() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "mtp.fc.weight": torch.randn(64, 128, generator=generator).bfloat16(),
        "mtp.layers.0.mlp.up_proj.weight": torch.randn(96, 64, generator=generator).half(),
        "mtp.norm.weight": torch.randn(64, generator=generator),
    }


@pytest.fixture(scope="module")
def source(extra: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_5")
    save("qwen3_5", folder, dtype=torch.float32)
    return with_extra(folder, extra)


def quantized_from(folder: Path, **arguments: Any) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=QAIGConfig(**RTN), **arguments)


def stored(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def assert_kept(folder: Path, extra: dict[str, Tensor]) -> None:
    tensors = stored(folder)
    for key, tensor in extra.items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor)


def test_they_are_saved_as_they_are_again_and_again(source: Path, extra: dict[str, Tensor], tmp_path: Path) -> None:
    model = quantized_from(source)
    model.save_pretrained(tmp_path / "one", max_shard_size="50KB")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 2
    assert_kept(tmp_path / "one", extra)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "one")
    assert torch.equal(logits(again, source), logits(model, source))
    again.save_pretrained(tmp_path / "two")
    assert_kept(tmp_path / "two", extra)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "two").save_pretrained(tmp_path / "two")
    assert_kept(tmp_path / "two", extra)


def test_log_report_and_card_name_them_and_their_size(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "transformers.qaig"):
        model = quantized_from(source)
    model.save_pretrained(tmp_path)
    named = "mtp.* (tensors: 3, 28.93 kB): saved as they are"
    assert any(named in record.getMessage() for record in caplog.records)
    assert named in str(model.qaig_report)
    assert named in (tmp_path / "README.md").read_text()


def test_a_budget_for_the_file_counts_them(source: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(source)
    _, coverage = list_schemes(model, QAIGConfig(budget=4, group_size=32))
    before = coverage.other_bits
    report_unused(model, find_unused(model, [str(source / "model.safetensors")]), coverage)
    assert coverage.other_bits - before == 8 * 28_928


def test_names_that_the_loader_changes_are_saved_under_their_own(llava: Path, tmp_path: Path) -> None:
    """This family's files have other names than its modules."""
    for file in llava.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    extra = {"language_model.model.layers.9.mtp.weight": torch.randn(3, 4), "eagle.fc.weight": torch.randn(5)}
    with_extra(tmp_path, extra)
    quantized_from(tmp_path).save_pretrained(tmp_path / "packed")
    assert_kept(tmp_path / "packed", extra)


def test_an_offloaded_model_saves_them_too(source: Path, extra: dict[str, Tensor], tmp_path: Path) -> None:
    quantized_from(source).save_pretrained(tmp_path / "one")
    text = ["embed_tokens", "norm", "rotary_emb", "layers.0", "layers.2", "layers.3"]
    parts = dict.fromkeys(["lm_head", "model.visual", *(f"model.language_model.{name}" for name in text)], "cpu")
    parts["model.language_model.layers.1"] = "disk"
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "one", device_map=parts, offload_folder=tmp_path / "offload"
    )
    model.save_pretrained(tmp_path / "two")
    assert_kept(tmp_path / "two", extra)


def test_what_lies_in_no_safetensors_is_named_and_not_saved(source: Path, tmp_path: Path) -> None:
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(source / "model.safetensors"), tmp_path / "pytorch_model.bin")
    model = quantized_from(tmp_path)
    assert "mtp.* (tensors: 3, 28.93 kB): not saved" in str(model.qaig_report)
    model.save_pretrained(tmp_path / "packed")
    assert not any("mtp" in key for key in stored(tmp_path / "packed"))


def test_a_class_that_leaves_parts_out_names_them(source: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=QAIGConfig(**RTN))
    assert "model.visual.*" in str(model.qaig_report)
    model.save_pretrained(tmp_path)
    assert not any("visual" in key for key in stored(tmp_path))


@pytest.mark.parametrize("fewer", [True, False])
def test_layers_that_the_config_lacks_are_named(
    fewer: bool, llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantized_from(llava).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] -= fewer
    (tmp_path / "config.json").write_text(json.dumps(config))
    caplog.clear()
    AutoModelForImageTextToText.from_pretrained(tmp_path)
    said = (
        "16 tensors in the files are not read: by config.json, LlavaForConditionalGeneration has no model.vision_tower"
    )
    assert (said in caplog.text) == fewer


def test_a_file_that_is_gone_is_told(
    source: Path, extra: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = quantized_from(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with caplog.at_level(logging.WARNING, "transformers.qaig"):
        model.save_pretrained(tmp_path / "packed")
    assert all(any(key in record.getMessage() for record in caplog.records) for key in extra)
    assert torch.equal(
        logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "packed"), source), logits(model, source)
    )
