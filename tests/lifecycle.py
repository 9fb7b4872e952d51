"""What the tests of the model's way through Transformers share."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoProcessor

from tests.families import conversations, samples
from transformers_qaig import QAIGLinear

FAST = {"group_size": 32, "dataset": conversations(4)}


def inputs(folder: Path) -> dict[str, Tensor]:
    return samples(AutoProcessor.from_pretrained(folder), 1)[0]


def logits(model: nn.Module, folder: Path) -> Tensor:
    with torch.no_grad():
        return model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs(folder).items()}).logits


def packed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, QAIGLinear)]


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "TOKENIZERS_PARALLELISM": "false", **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
