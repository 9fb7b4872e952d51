"""The trained Qwen2.5-VL: its folder loads, it answers, and it survives calibration at 3 bits."""

import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from tests.integration.trained import answers_at_three_bits

FOLDER = Path(__file__).parents[2] / "examples" / "tiny-vlm-qwen"
MODEL = FOLDER / "model"


def scenes(first: int, count: int) -> list[list[dict[str, Any]]]:
    sys.path.insert(0, str(FOLDER))
    from harder_scenes import conversation

    return [conversation(seed) for seed in range(first, first + count)]


def test_its_weights_are_small() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 20e6


@pytest.mark.parametrize("seed", [10_000, 10_001, 10_002])
def test_it_says_the_answers_about_a_scene(seed: int) -> None:
    processor, model = (kind.from_pretrained(MODEL) for kind in (AutoProcessor, AutoModelForImageTextToText))
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    (chat,) = scenes(seed, 1)
    for stop in range(1, len(chat), 2):
        prompt = processor.apply_chat_template(
            chat[:stop], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        said = model.generate(**prompt, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
        assert processor.decode(said, skip_special_tokens=True).strip() == chat[stop]["content"][0]["text"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_it_answers_as_well_at_three_bits() -> None:
    before, after = answers_at_three_bits(MODEL, scenes)
    assert before >= 0.8  # 0.90 of 1,122 questions; three standard errors of the 110 here less
    assert after["default"][1] < 0.5 * after["rtn"][1]
