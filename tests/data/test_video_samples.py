"""What processors and models get of a video: every frame at its time, or a refusal that says what to do."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.loading import asked, frames_of, one, same
from tests.families import VIDEO_FAMILIES, build
from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.data.loader import load_inputs


def test_a_processor_without_video_refuses_instead_of_taking_frames_for_images(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="LlavaProcessor takes no video: give chosen frames as parts of type 'image'"):
        one([asked(array)], build("llava")[1])
    processor = build("qwen2_5_vl")[1]
    processor.chat_template = processor.chat_template.replace("video", "film")
    with pytest.raises(ValueError, match="the chat template drops the video in message 0"):
        one([asked(array)], processor)


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_every_frame_reaches_the_model_and_the_answer_is_marked(family: str, array: np.ndarray) -> None:
    processor = build(family)[1]
    sample = one([asked(array)], processor, with_labels=True)
    assert same(sample, one([asked(frames_of(array))], processor, with_labels=True))
    answer = sample["labels"][0][sample["labels"][0] != -100]
    assert "a red cat" in processor.tokenizer.decode(answer)
    fewer = one([asked(array[:4])], processor)
    assert fewer["input_ids"].shape[1] < sample["input_ids"].shape[1]


def test_the_rate_of_frames_reaches_the_processor(array: np.ndarray) -> None:
    processor = build("qwen3_vl")[1]
    slow, fast = (processor.decode(one([asked(array, fps=fps)], processor)["input_ids"][0]) for fps in (0.5, 10))
    assert "<1.0 seconds>" in slow
    assert "<9.0 seconds>" in slow
    assert "<0.5 seconds>" in fast
    assert (
        one([asked(array, fps=10)], processor)["video_grid_thw"][0, 0] == 3
    )  # all 6 frames, though it takes 2 a second
    assert one([asked(array, fps=3)], build("qwen2_5_vl")[1])["second_per_grid_ts"].item() == pytest.approx(2 / 3)


def test_seconds_between_frames_are_not_rounded_as_pixels_are(array: np.ndarray) -> None:
    model, processor = build("qwen2_5_vl", dtype=torch.bfloat16)
    calibration = CalibrationConfig(processor=processor)
    (sample,) = load_inputs(model, QAIGConfig(dataset=[asked(array, fps=3)], calibration=calibration)).samples
    assert sample["pixel_values_videos"].dtype == torch.bfloat16
    assert sample["second_per_grid_ts"].item() == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_images_and_videos_in_one_conversation(family: str, array: np.ndarray) -> None:
    model, processor = build(family)
    picture = {"type": "image", "image": Image.fromarray(array[0])}
    mixed = asked(array[:4])
    mixed[0]["content"] = [picture, *mixed[0]["content"], picture]
    sample = one([mixed], processor)
    with torch.no_grad():
        assert model(**sample).logits.isfinite().all()


def test_images_that_a_processor_loses_beside_videos_are_refused(array: np.ndarray) -> None:
    mixed = asked(array[:4])
    mixed[0]["content"].append({"type": "image", "image": Image.fromarray(array[0])})
    with pytest.raises(ValueError, match=r"calibration sample 0 .*SmolVLMProcessor loses pixels where a sample has"):
        one([mixed], build("smolvlm")[1])
