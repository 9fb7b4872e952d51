"""A packed composite loaded by other classes than the one that saved it, wherever full precision is."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from tests.families import save
from tests.lifecycle import packed
from transformers_qaig import QAIGConfig

IDS = torch.tensor([[7, 8, 9, 12, 30, 44]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of packed models by family, towers packed too."""
    made = {}
    for family in ("qwen3_5", "qwen2_5_vl", "mllama", "llava"):
        folder = made[family] = tmp_path_factory.mktemp(family)
        save(family, folder / "full", dtype=torch.float32)
        config = QAIGConfig(bits=4, group_size=32, recipe="rtn", vision_bits=8)
        model = AutoModelForImageTextToText.from_pretrained(folder / "full", quantization_config=config)
        model.save_pretrained(folder / "packed")
    return made


def hidden(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen3_5", "AutoModelForCausalLM"),
        ("qwen3_5", "Qwen3_5ForCausalLM"),
        ("qwen3_5", "Qwen3_5TextModel"),
        ("qwen3_5", "AutoModel"),
        ("qwen3_5", "Qwen3_5ForConditionalGeneration"),
        ("qwen2_5_vl", "Qwen2_5_VLTextModel"),
        ("qwen2_5_vl", "AutoModel"),
        ("mllama", "MllamaForCausalLM"),
        ("mllama", "AutoModelForCausalLM"),
        ("llava", "LlavaModel"),
    ],
)
def test_another_class_gives_the_same_values(folders: dict[str, Path], tmp_path: Path, family: str, name: str) -> None:
    folder, cls = folders[family] / "packed", getattr(transformers, name)
    model, report = cls.from_pretrained(folder, output_loading_info=True)
    whole = AutoModelForImageTextToText.from_pretrained(folder)
    assert not report["missing_keys"]
    assert not [key for key in report["unexpected_keys"] if "weight_packed" in key or "qaig" in key]
    blocks = [path for path in packed(whole) if "language_model" in path]
    assert len([path for path in packed(model) if "layers" in path and "vision" not in path]) >= len(blocks)
    assert torch.equal(hidden(model), hidden(whole))

    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(hidden(again), hidden(whole))


@pytest.mark.parametrize("renamed", ["plan and tensors", "tensors"])
def test_the_callers_key_mapping_is_applied_to_the_plan(folders: dict[str, Path], tmp_path: Path, renamed: str) -> None:
    whole = AutoModelForImageTextToText.from_pretrained(folders["llava"] / "packed")
    for file in (folders["llava"] / "packed").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({f"old.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    if renamed == "plan and tensors":
        config = json.loads((tmp_path / "config.json").read_text())
        settings = config["quantization_config"]
        settings["plan"] = {f"old.{path}": entry for path, entry in settings["plan"].items()}
        (tmp_path / "config.json").write_text(json.dumps(config))
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, key_mapping={r"^old\.": ""})
    assert torch.equal(hidden(again), hidden(whole))


def test_the_callers_key_mapping_leads_to_another_class(folders: dict[str, Path]) -> None:
    whole = AutoModelForImageTextToText.from_pretrained(folders["llava"] / "packed")
    mapping = {r"^(model\.)?language_model\.(model\.)?": "model.", r"^language_model\.lm_head": "lm_head"}
    text = transformers.LlamaForCausalLM.from_pretrained(
        folders["llava"] / "packed", config=whole.config.get_text_config(), key_mapping=mapping
    )
    assert len(packed(text)) == len([path for path in packed(whole) if "language_model" in path])
    assert torch.equal(hidden(text), hidden(whole))


def test_a_class_without_any_packed_layer_is_named(folders: dict[str, Path]) -> None:
    """In full precision it loads, with weights that are random."""
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no module.*AutoModelForImageTextToText"):
        transformers.LlamaForCausalLM.from_pretrained(folders["llava"] / "packed")


def test_a_layer_that_is_not_there_is_damage_to_every_class(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in (folders["qwen3_5"] / "packed").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    plan = config["quantization_config"]["plan"]
    plan["model.language_model.layers.9.mlp.up_proj"] = plan.pop("model.language_model.layers.0.mlp.up_proj")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers\.9\.mlp\.up_proj"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_packed_tensors_that_the_plan_forgot_are_damage_to_every_class(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in (folders["qwen3_5"] / "packed").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]["plan"]["model.language_model.layers.0.mlp.up_proj"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj.*not in the plan"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_dequantized_composite_says_nothing_of_packing(folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folders["qwen3_5"] / "packed")
    model.dequantize().save_pretrained(tmp_path)
    assert "qaig" not in (tmp_path / "config.json").read_text()
    text = transformers.Qwen3_5ForCausalLM.from_pretrained(tmp_path)
    assert not packed(text)
    assert torch.equal(hidden(text), hidden(model))


def test_files_of_the_first_release_still_load(folders: dict[str, Path], tmp_path: Path) -> None:
    """They hold no notice, and their text config does not name the method."""
    source = folders["qwen3_5"] / "packed"
    tensors = load_file(source / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "import_transformers_qaig" not in k},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((source / "config.json").read_text())
    del config["text_config"]["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for cls in (AutoModelForImageTextToText, transformers.AutoModelForCausalLM):
        model, report = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        assert torch.equal(hidden(model), hidden(AutoModelForImageTextToText.from_pretrained(source)))
