"""All scales are learned together, on what the model predicts next; the codes stay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.families import FAMILIES, build, conversations, samples
from tests.lifecycle import logits
from transformers_qaig import QAIGConfig
from transformers_qaig.calibration import end_to_end, target_quantizer
from transformers_qaig.calibration.end_to_end import EndToEnd
from transformers_qaig.data import own_answers
from transformers_qaig.data.samples import load_samples
from transformers_qaig.data.tensors import NO_ANSWER
from transformers_qaig.execution.held_back import VALIDATION_EVERY
from transformers_qaig.nn.linear import QAIGLinear

STEPS = 3
LEARNED = {"name": "rtn", "end_to_end": True, "steps": STEPS, "validate": True}
WHOLE = {"vision_bits": 4, "lm_head_bits": 4, "embedding_bits": 4}


@pytest.fixture
def data(llava: Path) -> list[dict[str, Tensor]]:
    return samples(AutoProcessor.from_pretrained(llava), 8, seed=3)


def quantize(folder: Path, data: list[Any], recipe: Any = LEARNED, **settings: Any) -> nn.Module:
    settings = {"bits": 2, "group_size": 32, **settings}
    config = QAIGConfig(dataset=data, recipe=recipe, **settings)
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def scales_and_codes(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, QAIGLinear)}
    for layer in layers.values():
        layer.to_checkpoint_layout()
    return (
        {path: layer.weight_scale for path, layer in layers.items()},
        {path: layer.weight_packed for path, layer in layers.items()},
    )


@torch.no_grad()
def divergence(full: nn.Module, model: nn.Module, data: list[dict[str, Tensor]]) -> float:
    """Mean KL over the tokens before one of text: samples without labels are answers. Dense float32 weights."""
    total, count, dense = 0.0, 0, model.dequantize().float()
    for sample in data:
        text = sample["attention_mask"].bool() & (sample["input_ids"] != full.config.image_token_id)
        text = text[:, 1:]
        wanted, got = (m(**sample).logits[:, :-1][text].double().log_softmax(-1) for m in (full, dense))
        total += float((wanted.exp() * (wanted - got)).sum())
        count += int(text.sum())
    return total / count


def said(model: nn.Module) -> tuple[float, float]:
    """The divergence before and after, as the report says."""
    before, _, after = model.qaig_report.end_to_end.removeprefix("KL of held-back answers ").split()
    return float(before), float(after)


@pytest.mark.parametrize("settings", [{}, WHOLE, {"activation_bits": 8, "bits": 4}], ids=["blocks", "whole", "a8"])
def test_the_divergence_of_held_back_samples_falls_as_reported(
    settings: dict[str, Any], llava: Path, data: list[dict[str, Tensor]]
) -> None:
    full = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float32)
    learned = quantize(llava, data, **settings)
    plain = quantize(llava, data, {**LEARNED, "end_to_end": False}, **settings)
    (scales, codes), (before, same) = scales_and_codes(learned), scales_and_codes(plain)
    assert all(torch.equal(codes[path], same[path]) for path in same)
    assert {path for path in before if not torch.equal(scales[path], before[path])} == {
        path for path in before if ".layers." in path and "vision" not in path
    }
    assert all(scales[path].dtype == before[path].dtype for path in before)
    held_back = data[::VALIDATION_EVERY]
    start, best = said(learned)
    assert best < start
    if settings.get("activation_bits") != 8:  # dense weights round no inputs
        assert divergence(full, plain, held_back) == pytest.approx(start, rel=5e-3)
        assert divergence(full, learned, held_back) == pytest.approx(best, rel=5e-3)


def test_scales_that_do_not_help_are_undone(
    llava: Path, data: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_to_end, "RATE", 10.0)
    model = quantize(llava, data, {**LEARNED, "steps": 2})
    assert model.qaig_report.end_to_end.endswith(": undone")
    plain = quantize(llava, data, {**LEARNED, "end_to_end": False})
    assert torch.equal(logits(model, llava), logits(plain, llava))


def test_an_interrupted_run_learns_again_and_a_finished_one_does_not(
    llava: Path, data: list[dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, real = quantize(llava, data), end_to_end.learn

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(end_to_end, "learn", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(llava, data, calibration={"work_dir": tmp_path})
    monkeypatch.setattr(end_to_end, "learn", real)
    again = quantize(llava, data, calibration={"work_dir": tmp_path})
    assert all(target.resumed for target in again.qaig_report.targets)
    monkeypatch.setattr(end_to_end, "learn", stop)
    monkeypatch.setattr(target_quantizer, "quantize_block", stop)
    read = quantize(llava, data, calibration={"work_dir": tmp_path})
    for model in (again, read):
        assert model.qaig_report.end_to_end == whole.qaig_report.end_to_end
        assert torch.equal(logits(model, llava), logits(whole, llava))


def test_answers_alone_count_and_long_ones_are_thinned(
    llava: Path, data: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EndToEnd] = []
    real = EndToEnd.learn
    monkeypatch.setattr(EndToEnd, "learn", lambda self, store: seen.append(self) or real(self, store))
    monkeypatch.setattr(end_to_end, "MOST_TOKENS", 3)
    chats = conversations(6)
    quantize(llava, chats, {**LEARNED, "steps": 1})
    processor = AutoProcessor.from_pretrained(llava)
    labelled = load_samples(chats, processor, num_samples=6, seed=0, with_labels=True)
    (found,) = seen
    for sample, counts in {number: one.counts for number, one in found.predictions.items()}.items():
        answer = (labelled[sample]["labels"][0] != NO_ANSWER).nonzero().flatten()
        assert counts[0] == answer[0] - 1
        assert counts[-1] == answer[-1] - 1
        assert len(counts) == min(3, len(answer))
        assert len(found.predictions[sample].hidden) == len(counts)
    assert sorted(found.predictions) == list(range(6))


def test_a_model_without_a_linear_head_is_quantized_and_the_step_is_skipped(
    llava: Path, data: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*args: Any) -> Tensor:
        raise end_to_end.NoSingleHead("the head runs 2 times in a forward pass")

    monkeypatch.setattr(end_to_end, "hidden_at_head", none)
    model = quantize(llava, data)
    assert model.qaig_report.end_to_end == "skipped: the head runs 2 times in a forward pass"
    assert "Scales are not learned end to end: the head runs 2 times" in caplog.text
    plain = quantize(llava, data, {**LEARNED, "end_to_end": False})
    assert torch.equal(logits(model, llava), logits(plain, llava))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family: str, tmp_path: Path) -> None:
    model, processor = build(family)
    model.save_pretrained(tmp_path)
    made = samples(processor, 3)
    quantized = quantize(tmp_path, made, {**LEARNED, "steps": 2})
    start, best = said(quantized)
    assert best < start
    assert not any(parameter.grad is not None for parameter in quantized.parameters())


@pytest.mark.parametrize("validates", [True, False])
def test_it_draws_from_answers_of_the_full_model_but_not_to_held_back_questions(
    validates: bool, llava: Path, data: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EndToEnd] = []
    real, drawn = EndToEnd.learn, set[int]()
    monkeypatch.setattr(EndToEnd, "learn", lambda self, store: seen.append(self) or real(self, store))
    compared = end_to_end.divergence

    def note(model: Any, heads: Any, sample: Any, counts: Tensor, *more: Any) -> Tensor:
        drawn.update(n for one in seen for n, found in one.predictions.items() if found.sample is sample)
        return compared(model, heads, sample, counts, *more)

    monkeypatch.setattr(end_to_end, "divergence", note)
    chats = conversations(8)
    recipe = {**LEARNED, "validate": validates}
    plain = quantize(llava, chats, recipe)
    model = quantize(llava, chats, {**recipe, "own_answers": True})
    assert not torch.equal(logits(model, llava), logits(plain, llava))
    without, found = (one.predictions for one in seen)
    assert sorted(without) == list(range(8))
    questions = [one.question for number, one in found.items() if number >= 8]
    assert {question % VALIDATION_EVERY for question in questions} == ({1, 2, 3} if validates else {0, 1, 2, 3})
    assert len(questions) == (6 if validates else 8) * own_answers.NUMBER
    assert all(int(one.counts[0]) == int(found[one.question].counts[0]) for one in found.values())
    assert any(number >= 8 for number in drawn)
