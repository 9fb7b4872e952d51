"""Models that are packed whole: one that ties its head to its embeddings, and one that does not."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.families import save
from tests.integration.whole_model import quantize


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family that ties its head to its embeddings, and scales what it looks up."""
    folder = tmp_path_factory.mktemp("gemma3")
    save("gemma3", folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def tied(gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    folder = tmp_path_factory.mktemp("tied")
    model = quantize(gemma3, bits=4, recipe="rtn", vision_bits=4, embedding_bits=4)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="session")
def untied(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    folder = tmp_path_factory.mktemp("untied")
    model = quantize(llava, bits=3, recipe="rtn", vision_bits=4, embedding_bits=5, lm_head_bits=6)
    model.save_pretrained(folder)
    return model, folder
