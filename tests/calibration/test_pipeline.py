"""The calibration loop as a whole: what the parts of a run are given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.families import samples
from transformers_qaig import QAIGConfig
from transformers_qaig.calibration import group_context
from transformers_qaig.execution.held_back import VALIDATION_EVERY
from transformers_qaig.rounding.damping import Damping


def test_held_back_tokens_of_text_choose_the_damping(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masses: set[float] = set()

    def choose(weights: Any, grids: Any, calibration: Any, held_back: Any, *rest: Any) -> Damping:
        masses.add(float(held_back.mass))
        return Damping()

    monkeypatch.setattr(group_context, "choose_damping", choose)
    data = samples(AutoProcessor.from_pretrained(llava), 24, seed=5)
    config = QAIGConfig(bits=4, group_size=32, dataset=data)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    picture = model.config.image_token_id
    held = [data[place] for place in range(0, len(data), VALIDATION_EVERY)]
    text = [sample["attention_mask"].bool() & (sample["input_ids"] != picture) for sample in held]
    assert masses == {float(torch.cat(text, 1).sum())}
