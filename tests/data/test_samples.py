"""Which samples are taken, how long and large they may be, and what the user is told of them."""

import logging
import re
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.loading import conversation, one
from tests.families import build
from transformers_qaig.data.model_inputs import ModelInputs
from transformers_qaig.data.samples import load_samples


def test_choice_is_by_seed_and_only_when_there_are_more(processor: Any, picture: Image.Image) -> None:
    data = [conversation(picture, answer=str(k)) for k in range(8)]

    def digits(num_samples: int, seed: int, dataset: Any = data) -> list[int]:
        return [
            int(s["input_ids"][0, -2]) for s in load_samples(dataset, processor, num_samples=num_samples, seed=seed)
        ]

    in_order = digits(8, 0)
    assert digits(20, 3) == in_order
    assert len(set(in_order)) == 8
    assert digits(4, 1) == digits(4, 1)
    assert digits(4, 1) != digits(4, 2)
    assert len(set(digits(4, 1))) == 4
    assert digits(2, 5, iter(data)) == digits(2, 5, tuple(data))  # a stream that its buffer holds


def test_max_pixels_shrinks_large_images_only() -> None:
    processor = build("qwen2_5_vl")[1]
    large, small = Image.new("RGB", (400, 200)), Image.new("RGB", (56, 28))
    full, small_grid = (one([conversation(im)], processor)["image_grid_thw"] for im in (large, small))
    shrunk, kept = (one([conversation(im)], processor, max_pixels=1600)["image_grid_thw"] for im in (large, small))
    assert shrunk.prod() < full.prod()
    assert torch.equal(kept, small_grid)


def test_one_decoded_sample_is_logged(processor: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "transformers.qaig"):
        load_samples([conversation(picture)], processor, num_samples=4, seed=0)
    assert "1 samples (4 were asked for), 1 with an image or a video" in caplog.text
    assert "<image>×64" in caplog.text
    assert "<image><image>" not in caplog.text
    assert "how many" in caplog.text


def test_text_only_data_warns_for_a_vlm_only(
    processor: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    text = [{"role": "user", "content": "how many ?"}, {"role": "assistant", "content": "2"}]
    load_samples([text, conversation(picture)], processor, num_samples=2, seed=0)
    load_samples([text], processor, num_samples=2, seed=0, inputs=ModelInputs(has_images=False))
    assert "no image" not in caplog.text
    load_samples([text], processor, num_samples=2, seed=0)
    assert re.search(r"never sees its vision tokens.*image \+ text", caplog.text)
    caplog.clear()
    load_samples(["how many ?"], processor, num_samples=2, seed=0)
    assert "no image" in caplog.text


def test_a_sample_that_the_processor_refuses(processor: Any, picture: Image.Image) -> None:
    refused = conversation(picture, question="how many <image> ?")  # one image, two image tokens
    with pytest.raises(ValueError, match=r"sample 1 was refused by LlavaProcessor \(.*Remove or mend this sample"):
        load_samples([conversation(picture), refused], processor, num_samples=2, seed=0)


def test_num_samples_must_be_positive(processor: Any) -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        load_samples(None, processor, num_samples=0, seed=0)
