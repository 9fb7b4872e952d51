"""What tests of calibration data share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from tests import seeds


@pytest.fixture(scope="module")
def processor(tiny_vlm_path: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_vlm_path)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(seeds.rng().integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.fixture
def array() -> np.ndarray:
    return seeds.rng().integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)
