"""A quantized model saved, loaded, opened by others and turned back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText

from tests.families import build
from tests.lifecycle import FAST, logits, logits_in_a_new_process, packed, run
from tests.tolerance import assert_close, terms_of
from transformers_qaig import QAIGConfig


def test_reloads_in_a_new_process_bit_by_bit(llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = quantized
    assert torch.equal(logits_in_a_new_process(folder, llava, tmp_path), logits(model, llava))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loaded_in_another_dtype_its_weights_stay(
    llava: Path, quantized: tuple[nn.Module, Path], dtype: torch.dtype
) -> None:
    """As with a cast: rounding the scales would change the weights, and small ones are nothing in float16."""
    model, folder = quantized
    other = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    assert other.dtype == dtype
    scales = {f"{path}.weight_scale" for path in packed(model)}
    assert {p.dtype for name, p in other.named_parameters() if p.is_floating_point() and name not in scales} == {dtype}
    for path in packed(model):
        ours, theirs = model.get_submodule(path), other.get_submodule(path)
        assert torch.equal(theirs.dequantize(torch.float32), ours.dequantize(torch.float32))
        assert theirs.compute_dtype == dtype
    assert torch.corrcoef(torch.stack([logits(m, llava).float().flatten() for m in (model, other)]))[0, 1] > 0.99


def test_opened_without_the_plugin_it_fails_instead_of_answering(quantized: tuple[nn.Module, Path]) -> None:
    code = (
        "from transformers import AutoModelForImageTextToText as Auto\n"
        f"Auto.from_pretrained({str(quantized[1])!r})\nprint('ANSWERED')\n"
    )
    done = run(code, QAIG_AUTOLOAD="0")
    assert done.returncode != 0
    assert "ANSWERED" not in done.stdout
    rows = [line for line in done.stderr.splitlines() if "UNEXPECTED" in line]
    assert any("__install_transformers-qaig" in row and "import_transformers_qaig" in row for row in rows)


def test_shards_reload_equal(llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, _ = quantized
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(tmp_path), llava), logits(model, llava))


def test_saved_again_after_loading_nothing_changes(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, folder = quantized
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path)
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((folder / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())


def test_the_same_tensors_load_as_compressed_tensors(llava: Path, tmp_path: Path) -> None:
    """Without the guard and under the other method's name, Transformers' own quantizer has the same weights."""
    config = QAIGConfig(bits=3, sym=True, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    plan = settings["quantization_config"]["plan"]
    tensors = load_file(tmp_path / "model.safetensors")
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    assert len(empty) == 2
    tensors = {name: tensor for name, tensor in tensors.items() if name not in empty}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})

    groups: dict[tuple, list[str]] = {}
    for path, entry in plan.items():
        groups.setdefault((entry["bits"], entry["group_size"]), []).append(path)
    settings["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": paths,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "channel" if size == -1 else "group",
                    "group_size": None if size == -1 else size,
                },
            }
            for i, ((bits, size), paths) in enumerate(groups.items())
        },
        "ignore": ["lm_head", "re:.*vision.*", "re:.*multi_modal_projector.*"],
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    other = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert other.config.quantization_config.quant_method == "compressed-tensors"
    assert torch.equal(logits(other, llava), logits(model.dequantize(), llava))


def test_the_base_model_loads_from_a_full_checkpoint(quantized: tuple[nn.Module, Path]) -> None:
    base = AutoModel.from_pretrained(quantized[1])
    assert len(packed(base)) == len(packed(quantized[0]))


def test_the_hubs_config_wins_over_a_given_one(quantized: tuple[nn.Module, Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(quantized[1], quantization_config=QAIGConfig(bits=8))
    assert model.config.quantization_config.bits == 3


def test_dequantized_it_is_an_ordinary_model_again(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(quantized[1])
    model.dequantize()
    assert not packed(model)
    assert_close(logits(model, llava), logits(quantized[0], llava), terms_of(model))
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(tmp_path), llava), logits(model, llava))


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model, processor = build("gemma3")  # ties its head to its embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "fp")
    processor.save_pretrained(tmp_path / "fp")
    config = QAIGConfig(bits=4, **FAST)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "fp", quantization_config=config).save_pretrained(
        tmp_path / "q"
    )
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    with safe_open(tmp_path / "q" / "model.safetensors", "pt") as stored:
        assert sum(key.endswith(("lm_head.weight", "embed_tokens.weight")) for key in stored.keys()) == 1


def test_shards_over_an_older_save_are_what_is_loaded(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    older = AutoModelForImageTextToText.from_pretrained(
        llava, quantization_config=QAIGConfig(bits=2, group_size=32, recipe="rtn")
    )
    older.save_pretrained(tmp_path)
    quantized[0].save_pretrained(tmp_path, max_shard_size="60KB")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(logits(again, llava), logits(quantized[0], llava))
