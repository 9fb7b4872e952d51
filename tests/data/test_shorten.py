"""Samples that are too long lose frames and text, never a part of an image, and the user is told once."""

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests import seeds
from tests.data.loading import conversation, one, same
from tests.families import VIDEO_FAMILIES, build
from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.data.loader import load_inputs
from transformers_qaig.data.samples import load_samples

DOCUMENT = "how many " + "the red cat on a blue mat and " * 120 + "what is it ?"


@pytest.fixture
def video() -> np.ndarray:
    return seeds.rng().integers(0, 256, (24, 40, 60, 3), dtype=np.uint8)


def about(video: Any, question: str, answer: str = "2") -> list[dict[str, Any]]:
    content = [{"type": "video", "video": video}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def length(sample: dict[str, torch.Tensor]) -> int:
    return sample["input_ids"].shape[1]


@pytest.mark.parametrize("max_length", [100, 150, 300])
def test_a_long_text_keeps_its_ends_and_its_image(processor: Any, picture: Image.Image, max_length: int) -> None:
    sample = one([conversation(picture, DOCUMENT)], processor, max_length=max_length, with_labels=True)
    assert 0.9 * max_length <= length(sample) <= max_length
    assert int((sample["input_ids"] == processor.image_token_id).sum()) == 64
    text = processor.decode(sample["input_ids"][0])
    assert "how many" in text
    assert "what is it ?" in text
    assert (sample["labels"] != -100).any()
    assert same(
        one([conversation(picture, DOCUMENT)], processor),
        one([conversation(picture, DOCUMENT)], processor, max_length=10**6),
    )


def test_an_answer_keeps_its_beginning(processor: Any, picture: Image.Image) -> None:
    answer = "2 " + "3 " * 500 + "4"
    sample = one([conversation(picture, answer=answer)], processor, max_length=120, with_labels=True)
    assert length(sample) <= 120
    kept = processor.decode(sample["labels"][0][sample["labels"][0] != -100])
    assert kept.startswith("2 3")
    assert "4" not in kept


def test_a_sample_whose_rest_the_template_refuses_is_left_out(
    processor: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    strict = copy.deepcopy(processor)
    strict.chat_template = "{% if ' ... ' in messages | string %}{{ raise_exception('cut') }}{% endif %}" + str(
        processor.chat_template
    )
    one([conversation(picture, DOCUMENT), conversation(picture)], strict, max_length=100)
    assert "1 of 2 samples" in caplog.text


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_long_video_loses_frames_and_the_model_still_takes_it(family: str, video: np.ndarray) -> None:
    model, processor = build(family)
    full = one([about(video, "what ?")], processor)
    shorter = one([about(video, "what ?")], processor, max_length=length(full) // 2)
    assert length(full) // 4 < length(shorter) <= length(full) // 2
    with torch.no_grad():
        assert model(**shorter).logits.isfinite().all()


def test_what_takes_more_tokens_is_cut_first(video: np.ndarray) -> None:
    model, processor = build("qwen2_5_vl")
    frames = lambda sample: int(sample["video_grid_thw"][0, 0])  # noqa: E731
    by_text = one([about(video, DOCUMENT)], processor, max_length=400)
    assert frames(by_text) == 12
    by_frames = one([about(video, "what is it ?")], processor, max_length=36)
    assert frames(by_frames) < 12
    assert "what is it ?" in processor.decode(by_frames["input_ids"][0])
    both = one([about(video, DOCUMENT)], processor, max_length=36)
    assert frames(both) < 12
    for sample in (by_text, by_frames, both):
        assert length(sample) <= (400 if sample is by_text else 36)
        with torch.no_grad():
            assert model(**sample).logits.isfinite().all()


def test_what_was_cut_is_said_once(processor: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    short, long = conversation(picture), conversation(picture, DOCUMENT)
    images = [{"role": "user", "content": [{"type": "image", "image": picture}] * 4}]
    alone = [length(one([sample], processor)) for sample in (long, images)]
    caplog.clear()
    samples = load_samples([short, long, images, long], processor, num_samples=3, seed=3, max_length=200)
    assert len(samples) == 3
    cut = 2 * alone[0] - sum(length(sample) for sample in samples if length(sample) > 100)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        f"2 of 4 samples were longer than 200 tokens, `max_length`: {cut} tokens of texts and video frames" in warning
    )
    assert f"1 of 4 samples of {alone[1]} tokens were left out, because what cannot be cut" in warning


def test_images_and_processor_outputs_that_are_too_long_are_left_out(processor: Any, picture: Image.Image) -> None:
    data = [conversation(picture, answer=str(k)) for k in range(6)]
    with pytest.raises(ValueError, match="no calibration sample: all 6 are longer than 60 tokens"):
        load_samples(data, processor, num_samples=3, seed=0, max_length=60)
    outputs = [one([conversation(picture, question)], processor) for question in ("how many ?", DOCUMENT)]
    (kept,) = load_samples(outputs, processor, num_samples=2, seed=0, max_length=200)
    assert same(kept, outputs[0])


def test_images_and_videos_that_are_scaled_down_are_said(video: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    processor = build("qwen2_5_vl")[1]
    with caplog.at_level(logging.WARNING, "transformers.qaig"):
        small = one([about(np.repeat(np.repeat(video, 2, 1), 2, 2), "what ?")], processor, max_pixels=1600)
    assert "1 images and videos were scaled down to max_pixels=1600" in caplog.text
    assert length(small) < length(one([about(np.repeat(np.repeat(video, 2, 1), 2, 2), "what ?")], processor))


def test_max_pixels_does_not_reach_processor_outputs_and_that_is_said(
    picture: Image.Image, processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = [one([conversation(picture, "a")], processor)]
    assert one(outputs, processor, max_pixels=100)["pixel_values"].equal(outputs[0]["pixel_values"])
    assert "max_pixels=100 has no effect on 1 of 1 samples, which are processor outputs" in caplog.text


def test_the_settings_reach_the_loader_and_the_model_s_context_is_the_limit_without_them(
    picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = build("llava")
    model.config.text_config.max_position_embeddings = 300
    data = [conversation(picture, DOCUMENT)]
    for max_length, most in ((None, 300), (100, 100), (1000, 300)):
        calibration = CalibrationConfig(processor=processor, max_length=max_length)
        (sample,) = load_inputs(model, QAIGConfig(dataset=data, calibration=calibration)).samples
        assert 0.9 * most <= length(sample) <= most
    assert caplog.text.count("longer than 300 tokens, which the model can take") == 2
    assert caplog.text.count("longer than 100 tokens, `max_length`") == 1


@pytest.mark.parametrize("name", ["max_length", "max_pixels"])
def test_a_limit_is_a_positive_integer(name: str) -> None:
    assert getattr(CalibrationConfig(**{name: np.int64(7)}), name) == 7
    for value in (0, -1, 1.5, True, "7"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
            CalibrationConfig(**{name: value})


@pytest.fixture(scope="module")
def processor(tiny_vlm_path: Any) -> Any:
    return AutoProcessor.from_pretrained(tiny_vlm_path)
