"""Quantized folders to export: the tiny LLaVA in a few schemes, saved once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import AutoModelForImageTextToText

from transformers_qaig import QAIGConfig

Quantized = Callable[..., Path]


@pytest.fixture(scope="session")
def quantized(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Returns the folder of the tiny LLaVA quantized with the given settings; equal settings give one folder."""
    made: dict[str, Path] = {}

    def folder(**settings: Any) -> Path:
        key = repr(sorted(settings.items()))
        if key not in made:
            config = QAIGConfig(**{"recipe": "rtn", "group_size": 32, "bits": 4, **settings})
            model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
            made[key] = tmp_path_factory.mktemp("quantized")
            model.save_pretrained(made[key])
        return made[key]

    return folder


def dense(folder: Path) -> nn.Module:
    """Our own model with its weights dequantized."""
    return AutoModelForImageTextToText.from_pretrained(folder).dequantize()
