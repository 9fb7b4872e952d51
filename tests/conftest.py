"""What every test needs before Transformers is imported."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

# Some processors need torchvision, of which there is no CPU build. The CUDA wheel imports on CPU once these two
# operators have a schema. It stands in a folder of its own (see the Makefile): without the stub it would break others.
sys.path.append(str(Path(sys.prefix) / "torchvision-cpu"))
_torchvision_stub = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _torchvision_stub.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_vlm_path() -> Path:
    """Folder of the trained tiny VLM (a LLaVA of 6.8 M parameters, bf16)."""
    return TINY_VLM / "model"
