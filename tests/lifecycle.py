"""What the tests of the model's way through Transformers share."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoProcessor

from tests.families import conversations, samples
from transformers_qaig.nn.packed_tensors import PackedTensors

FAST = {"group_size": 32, "dataset": conversations(4)}


def inputs(folder: Path) -> dict[str, Tensor]:
    return samples(AutoProcessor.from_pretrained(folder), 1)[0]


def logits(model: nn.Module, folder: Path) -> Tensor:
    return answer(model, inputs(folder))


def answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Logits that two models of the same weights have to the bit, wherever these lie.

    A library may add in another order what begins elsewhere than at a multiple of 64 bytes, as in a mapped file.
    """
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    aligned = {name: t.clone() for name, t in tensors if t.is_floating_point() and t.is_cpu and t.data_ptr() % 64}
    inputs = {name: t.to(model.dtype) if t.is_floating_point() else t for name, t in inputs.items()}
    with torch.no_grad():
        return torch.func.functional_call(model, aligned, (), inputs).logits


def packed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, PackedTensors)]


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
        "from tests.lifecycle import answer\n"
        f"torch.save(answer(model, torch.load({str(tmp_path / 'inputs.pt')!r})), {str(tmp_path / 'logits.pt')!r})\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "UNEXPECTED" not in done.stdout + done.stderr
    assert "MISSING" not in done.stdout + done.stderr
    return torch.load(tmp_path / "logits.pt")
