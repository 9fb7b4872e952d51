"""Calibration where tensors are made elsewhere by default."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tests.lifecycle import FAST
from transformers_qaig import QAIGConfig
from transformers_qaig.allocation import allocate
from transformers_qaig.calibrate import calibrate
from transformers_qaig.calibration.inputs import load_inputs
from transformers_qaig.plan import list_options
from transformers_qaig.sensitivity import measure_costs


def quantize(folder: Path, device: str, settings: dict[str, Any]) -> dict[str, Tensor]:
    model = AutoModelForImageTextToText.from_pretrained(folder).requires_grad_(False)
    config = QAIGConfig(**FAST, target_bits=4.5, bits=(2, 4), **settings)
    with torch.device(device):
        options, coverage = list_options(model, config)
        samples, answers = load_inputs(model, config)
        options = measure_costs(model, options, samples, answers, config)
        chosen = allocate(options, 4.5 * coverage.packed).entries
        plan = {path: dict(entry) for path, entry in chosen.items()} | coverage.outside
        calibrate(model, plan, coverage, samples, config, answers)
    return model.state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "fast", "cost": "fisher"},
        {"recipe": "mbq", "cost": "path"},
        {"recipe": "paper", "cost": "error", "stages": {"token_weights": "shuffled", "rotation": "all"}},
    ],
)
def test_nothing_depends_on_the_default_device(llava: Path, settings: dict[str, Any]) -> None:
    found, expected = (quantize(llava, device, settings) for device in ("meta", "cpu"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
