"""Calibration of a model that is packed whole."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.families import samples, save
from tests.integration.whole_model import quantize
from tests.lifecycle import logits
from tests.tolerance import assert_close, rounding, terms_of
from transformers_qaig import BitBudget, QAIGLinear
from transformers_qaig.calibration import target_quantizer
from transformers_qaig.execution import targets
from transformers_qaig.rounding import packed_layers


def test_the_language_model_is_calibrated_on_the_quantized_towers_features(
    llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = {}, target_quantizer.quantize_block

    def spy(block, path, schemes, inputs, settings):
        seen[path] = [(call.args, inputs.quantized[sample].args) for sample, call in inputs.full.items()]
        return real(block, path, schemes, inputs, settings)

    monkeypatch.setattr(target_quantizer, "quantize_block", spy)
    model = quantize(llava, bits=8, vision_bits=2, embedding_bits=2, lm_head_bits=8)
    arrived = []
    for one in (AutoModelForImageTextToText.from_pretrained(llava), model):
        block = one.get_submodule("model.language_model.layers.0")
        block.register_forward_pre_hook(lambda module, args: arrived.append(args[0]))
        with torch.no_grad():
            one(**samples(AutoProcessor.from_pretrained(llava), 1)[0])
    full, quantized = arrived
    calls = [(x, x_q) for (x, *_), (x_q, *_) in seen["model.language_model.layers.0"] if x.shape == full.shape]
    near = rounding(torch.float32, terms_of(one)) * float(full.abs().max())
    (x, x_q) = next(pair for pair in calls if torch.allclose(pair[0], full, rtol=0, atol=near))
    assert_close(x_q, quantized, terms_of(one))
    assert (x_q - x).norm() > 0.05 * x.norm()  # 2 bits are felt
    assert list(seen)[-1] == "lm_head.0"


def test_token_weights_and_8_bit_activations_reach_a_tower_without_a_batch_dimension(tmp_path: Path) -> None:
    save("qwen2_5_vl", tmp_path / "fp", dtype=torch.float32)
    model = quantize(tmp_path / "fp", bits=8, vision_bits=4, lm_head_bits=8, recipe="paper", activation_bits=8)
    token_weights = {summary.path: summary.token_weights for summary in model.qaig_report.targets}
    assert all(token_weights["model.visual.blocks.1"].values())
    assert {m.activation_bits for m in model.modules() if isinstance(m, QAIGLinear)} == {8}
    model.save_pretrained(tmp_path / "q")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again, tmp_path / "fp"), logits(model, tmp_path / "fp"))


def test_an_interrupted_run_resumes(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"bits": 3, "vision_bits": 3, "lm_head_bits": 3, "embedding_bits": 3}
    whole = quantize(llava, **settings)
    real, paths = target_quantizer.quantize_block, []

    def stop(block, path, *rest):
        paths.append(path)
        if path == "model.language_model.layers.1" and len(paths) < 6:
            raise KeyboardInterrupt
        return real(block, path, *rest)

    monkeypatch.setattr(target_quantizer, "quantize_block", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(llava, calibration={"work_dir": tmp_path}, **settings)
    before = list(paths)
    model = quantize(llava, calibration={"work_dir": tmp_path}, **settings)
    assert paths[len(before) :] == ["model.language_model.layers.1", "lm_head.0"]
    assert torch.equal(logits(model, llava), logits(whole, llava))


def test_a_head_in_slices_is_the_head_at_once(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"bits": 4, "lm_head_bits": 3, "embedding_bits": 3, "recipe": "rtn"}
    whole = quantize(llava, **settings)
    monkeypatch.setattr(targets, "ROWS_PER_CHUNK", 96)
    monkeypatch.setattr(packed_layers, "ROWS_PER_CHUNK", 96)
    model = quantize(llava, **settings)
    assert torch.equal(model.lm_head.dequantize(), whole.lm_head.dequantize())
    assert torch.equal(logits(model, llava), logits(whole, llava))
    assert [summary.path for summary in model.qaig_report.targets].count("lm_head") == 1


def test_a_size_to_meet_counts_what_is_packed_outside_the_blocks(llava: Path, tmp_path: Path) -> None:
    size = 170_000
    outside = {"vision_bits": 4, "embedding_bits": 4, "lm_head_bits": 4}
    quantize(llava, budget=BitBudget(size=size), recipe="rtn", **outside).save_pretrained(tmp_path)
    assert 0.9 * size < (tmp_path / "model.safetensors").stat().st_size <= size
    dense = ["vision_tower", "multi_modal_projector", "lm_head", "embed_tokens"]
    with pytest.raises(ValueError, match="cannot be met"):
        quantize(llava, budget=BitBudget(size=size), recipe="rtn", modules_to_not_convert=dense)
