"""Paused forward passes are exact for videos and for several images."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import seeds
from tests.execution.toy import assert_equal, blocks_of, plain, run_blocks
from tests.families import VIDEO_FAMILIES, build
from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.data.loader import load_inputs
from transformers_qaig.execution.paused_forward import PausedForwards

ONE_KIND = ("smolvlm", "glm4v")  # of media in a sample


def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    content = [*parts, {"type": "text", "text": "what is this ?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "a red cat"}]


def media() -> tuple[dict[str, Any], dict[str, Any]]:
    pixels = seeds.rng().integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)
    return {"type": "video", "video": pixels}, {"type": "image", "image": Image.fromarray(pixels[0])}


@pytest.mark.parametrize("family", [*VIDEO_FAMILIES, "qwen2_vl"])
def test_videos_and_images_of_several_samples(family: str) -> None:
    model, processor = build(family)
    video, image = media()
    conversations = [asked(video), asked(video, video), asked(image, image, image)]
    conversations += [] if family in ONE_KIND else [asked(video, image), asked(image, video, image)]
    calibration = CalibrationConfig(processor=processor)
    inputs = load_inputs(model, QAIGConfig(dataset=conversations, calibration=calibration)).samples
    expected, blocks = plain(model, inputs), blocks_of(model)
    with PausedForwards(model, blocks, inputs) as forwards:
        assert_equal(run_blocks(forwards, blocks), expected)


def test_images_and_videos_that_a_model_cannot_tell_apart_are_refused_before_it_runs() -> None:
    model, processor = build("glm4v")
    calibration = CalibrationConfig(processor=processor)
    with pytest.raises(ValueError, match="calibration sample 0 has images and videos, and Glm4vForConditional"):
        load_inputs(model, QAIGConfig(dataset=[asked(*media())], calibration=calibration))
