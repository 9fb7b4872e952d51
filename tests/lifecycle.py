"""What the tests of the model's way through Transformers share."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoProcessor

from tests.families import conversations, samples
from transformers_qaig.nn import PackedModule

FAST = {"group_size": 32, "dataset": conversations(4)}


def inputs(folder: Path) -> dict[str, Tensor]:
    return samples(AutoProcessor.from_pretrained(folder), 1)[0]


def logits(model: nn.Module, folder: Path) -> Tensor:
    with torch.no_grad():
        return model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs(folder).items()}).logits


def packed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, PackedModule)]


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "TOKENIZERS_PARALLELISM": "false", **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def logits_in_a_new_process(folder: Path, source: Path, tmp_path: Path) -> Tensor:
    """What the model saved in `folder` answers to `source`'s inputs where it is loaded afresh, without complaint."""
    torch.save(inputs(source), tmp_path / "inputs.pt")
    code = (
        "import torch, transformers_qaig\n"
        "from transformers import AutoModelForImageTextToText as Auto\n"
        f"model = Auto.from_pretrained({str(folder)!r})\n"
        f"inputs = torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        "with torch.no_grad():\n"
        f"    torch.save(model(**inputs).logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "UNEXPECTED" not in done.stdout + done.stderr
    assert "MISSING" not in done.stdout + done.stderr
    return torch.load(tmp_path / "logits.pt")
