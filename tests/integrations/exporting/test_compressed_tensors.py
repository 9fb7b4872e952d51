"""compressed-tensors: plain Transformers computes what our dequantized model does, or the export is refused."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

import transformers_qaig
from tests.families import FAMILIES, save
from tests.integrations.exporting.conftest import Quantized, dense
from tests.lifecycle import logits
from transformers_qaig import QAIGConfig
from transformers_qaig.integrations.exporting.refusals import ExportError

MIXED = {"bits": 3, "sym": True, "overrides": {"*.down_proj": 8, "*.o_proj": 4}}
DOWN = "model.language_model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    "settings",
    [{"sym": True}, {}, {"sym": True, "bits": 3, "overrides": {DOWN: {"bits": 8}}}, {"sym": True, "lm_head_bits": 4}],
    ids=["symmetric", "asymmetric", "mixed", "head"],
)
def test_transformers_loads_it_with_equal_logits(
    settings: dict, quantized: Quantized, llava: Path, tmp_path: Path
) -> None:
    source, out = quantized(**settings), tmp_path / "out"
    transformers_qaig.export(source, out, format="compressed-tensors")
    model, info = AutoModelForImageTextToText.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    assert "dequantize" in json.loads((out / "config.json").read_text())["quantization_config"] or settings
    assert torch.equal(logits(model, llava), logits(dense(source), llava))


def test_names_are_those_of_published_files_and_the_guard_is_gone(quantized: Quantized, tmp_path: Path) -> None:
    transformers_qaig.export(quantized(sym=True), tmp_path / "out", format="compressed-tensors")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as stored:
        keys = set(stored.keys())
        assert all(0 not in stored.get_slice(key).get_shape() for key in keys)
    assert any(key.startswith("vision_tower.vision_model.encoder.layers.0.") for key in keys)
    assert not any("install_transformers-qaig" in key for key in keys)


def test_one_scheme_targets_linears_and_ignores_the_rest(quantized: Quantized, tmp_path: Path) -> None:
    transformers_qaig.export(quantized(sym=True), tmp_path / "out", format="compressed-tensors")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert [group["targets"] for group in config["config_groups"].values()] == [["Linear"]]
    names = r"(.*\.)?vision_tower(\..*)?$", r"(.*\.)?multi_modal_projector(\..*)?$", r"(.*\.)?lm_head(\..*)?$"
    assert set(config["ignore"]) == {f"re:{name}" for name in names}


def test_asymmetric_weights_of_several_schemes_are_for_vllm_alone(quantized: Quantized, tmp_path: Path) -> None:
    source = quantized(overrides={DOWN: {"bits": 8}})
    with pytest.raises(ExportError, match=r"only with `dequantize`.*down_proj.*sym=True.*engine='vllm'"):
        transformers_qaig.export(source, tmp_path / "out", format="compressed-tensors")
    assert not list(tmp_path.iterdir())
    done = transformers_qaig.export(source, tmp_path / "out", format="compressed-tensors", engine="vllm")
    assert any("Do not load this export with Transformers" in note for note in done.notes)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"vision_bits": 8}, "SigLIP's packed tower only with .* or leave out vision_bits; or export"),
        (
            {"embedding_bits": 8, "lm_head_bits": 8},
            "packed embeddings only with .* or leave out embedding_bits; or export",
        ),
    ],
    ids=["tower", "embeddings"],
)
def test_a_remedy_is_not_what_the_model_already_has(parts: dict, said: str, tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "examples/tiny-vlm/model"
    config = QAIGConfig(bits=4, group_size=32, sym=True, recipe="rtn", **parts)
    model = AutoModelForImageTextToText.from_pretrained(source, quantization_config=config)
    model.save_pretrained(tmp_path / "packed")
    with pytest.raises(ExportError, match=said) as refused:
        transformers_qaig.export(tmp_path / "packed", tmp_path / "out", format="compressed-tensors")
    assert "sym=True" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_fused_layers_of_several_schemes_are_not_for_vllm(quantized: Quantized, tmp_path: Path) -> None:
    source = quantized(sym=True, overrides={"*.layers.0.self_attn.q_proj": {"bits": 8}})
    with pytest.raises(ExportError, match=r"joins these layers.*layers\.0\.self_attn.*fuse=True"):
        transformers_qaig.export(source, tmp_path / "out", format="compressed-tensors", engine="vllm")
    done = transformers_qaig.export(source, tmp_path / "out", format="compressed-tensors")
    assert any("vLLM would refuse" in note for note in done.notes)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("settings", [MIXED, {"bits": 5}], ids=["symmetric, mixed", "asymmetric"])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"qwen3_vl_moe"}))
def test_transformers_loads_every_dense_family_with_equal_logits(family: str, settings: dict, tmp_path: Path) -> None:
    """qwen3_5 has layers whose group_size is refitted, so its asymmetric weights have several schemes."""
    save(family, tmp_path / "full")
    config = QAIGConfig(recipe="rtn", group_size=32, **settings)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "full", quantization_config=config)
    model.save_pretrained(tmp_path / "packed")
    export = partial(transformers_qaig.export, tmp_path / "packed", tmp_path / "out", format="compressed-tensors")
    if family == "qwen3_5" and settings != MIXED:
        with pytest.raises(ExportError, match="only with `dequantize`"):
            export()
        return
    export()
    exported, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not any(info.values()), info
    assert torch.equal(logits(exported, tmp_path / "full"), logits(dense(tmp_path / "packed"), tmp_path / "full"))


@pytest.mark.slow
def test_transformers_loads_experts_with_equal_logits(tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "examples/tiny-vlm-moe/model"
    config = QAIGConfig(bits=4, group_size=32, sym=True, recipe="rtn")
    model = AutoModelForImageTextToText.from_pretrained(source, quantization_config=config)
    model.save_pretrained(tmp_path / "packed")
    transformers_qaig.export(tmp_path / "packed", tmp_path / "out", format="compressed-tensors")
    exported, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(exported(input_ids=ids).logits, dense(tmp_path / "packed")(input_ids=ids).logits)


def test_experts_are_refused_where_transformers_cannot_load_them(tmp_path: Path) -> None:
    save("qwen3_vl_moe", tmp_path / "full")
    config = QAIGConfig(bits=4, group_size=32, sym=True, recipe="rtn")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "full", quantization_config=config)
    model.save_pretrained(tmp_path / "packed")
    with pytest.raises(ExportError, match=r"cannot load experts one by one.*engine='vllm'"):
        transformers_qaig.export(tmp_path / "packed", tmp_path / "out", format="compressed-tensors")
