"""A model that takes videos is quantized on them, saved, loaded, and still takes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests import seeds
from tests.families import save
from tests.lifecycle import packed
from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.data.samples import load_samples


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_a_model_quantized_on_videos(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "full", dtype=torch.bfloat16)
    rng = seeds.rng()
    dataset = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": rng.integers(0, 256, (12, 40, 60, 3), dtype=np.uint8), "fps": 3},
                    {"type": "text", "text": "what is this ?"},
                ],
            },
            {"role": "assistant", "content": "the red cat on a mat"},
        ]
        for _ in range(6)
    ]
    config = QAIGConfig(
        bits=3, group_size=32, dataset=dataset, calibration=CalibrationConfig(max_length=100, max_pixels=1800)
    )
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "full", quantization_config=config)
    assert len(packed(model)) >= 14
    model.save_pretrained(tmp_path / "packed")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "packed")
    (sample,) = load_samples(dataset, AutoProcessor.from_pretrained(tmp_path / "full"), num_samples=1, seed=0)
    sample = {
        name: value.bfloat16() if value.ndim > 1 and value.is_floating_point() else value
        for name, value in sample.items()
    }
    with torch.no_grad():
        assert torch.equal(model(**sample).logits, loaded(**sample).logits)
    assert loaded.generate(**sample, max_new_tokens=3, do_sample=False).shape[1] == sample["input_ids"].shape[1] + 3
