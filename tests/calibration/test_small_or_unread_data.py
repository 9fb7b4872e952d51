"""Calibration data that is too little, not read or without answers: one warning says so."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from tests.families import conversations, samples
from transformers_qaig import QAIGConfig


def quantize(folder: Path, **settings: Any) -> PreTrainedModel:
    config = QAIGConfig(**{"bits": 4, "group_size": 32, **settings})
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def data(folder: Path, count: int) -> list[dict[str, Tensor]]:
    return samples(AutoProcessor.from_pretrained(folder), count, seed=5)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_recipe_without_data_names_the_data_that_it_ignores(llava: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantize(llava, recipe="rtn", dataset=conversations(8), calibration={"columns": {"messages": "chat"}})
    (said,) = warnings(caplog)
    assert said.startswith("`dataset` and `columns` ignored: `recipe='rtn'` reads no data.")


@pytest.mark.parametrize(("count", "message"), [(1, "only [0-9]+ tokens: below 64"), (4, "only 4 conversations")])
def test_a_small_set_is_remarked_on(llava: Path, caplog: pytest.LogCaptureFixture, count: int, message: str) -> None:
    quantize(llava, recipe="gptq", dataset=data(llava, count))
    (said,) = warnings(caplog)
    assert re.search(message, said)


def test_enough_data_is_not_remarked_on(llava: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantize(llava, recipe="gptq", dataset=data(llava, 8))
    assert warnings(caplog) == []


@pytest.mark.parametrize("settings", [{"recipe": "mbq"}, {"bits": None, "budget": 4.0, "recipe": "gptq"}])
def test_data_without_answers_is_remarked_on(
    llava: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    found = data(llava, 8)
    for sample in found[1:]:
        sample["labels"] = torch.full_like(sample["input_ids"], -100)
    found[0]["labels"] = found[0]["input_ids"].clone()
    quantize(llava, dataset=found, **settings)
    (said,) = warnings(caplog)
    assert said.startswith("7 of 8 calibration conversations mark no answer, and ")
    assert said.endswith("The first is number 1.")
