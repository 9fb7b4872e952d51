"""Finished blocks in a work folder, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import QAIGConfig
from ..coverage import Plan
from ..files import write, written_whole
from ..nn.hadamard import Rotation
from ..nn.linear import QAIGLinear, get_linear
from ..report.summary import BlockSummary
from .choices import Entries

TOLERANCE = 1e-2
"""How far a resumed block's output error may be from the recorded one, relative."""


class BlockStore:
    """
    One file per finished block, written under a temporary name and renamed, plus `run.json` with the run's fingerprint.

    Resuming replays the finished blocks: each forward pass runs again, and a finished block's packed weights come from
    its file instead of being searched. A replayed block must show the output error it was saved with.

    Raises:
        ValueError: the folder belongs to a run with another model, configuration or calibration data.
    """

    def __init__(self, config: QAIGConfig, plan: Plan, samples: Sequence[Mapping[str, Any]]):
        self.folder = Path(config.work_dir) if config.work_dir is not None else None
        if self.folder is None:
            return
        claim(self.folder, {"config": {**config.to_dict(), "plan": None}, "plan": plan, "samples": digest(samples)})

    def _file(self, path: str) -> Path | None:
        return self.folder / f"{path}.safetensors" if self.folder is not None else None

    def load(self, path: str, block: nn.Module, entries: Entries) -> tuple[nn.Module, BlockSummary] | None:
        """
        The finished block at `path`, or None.

        Raises:
            ValueError: the file was made from other weights than `block` has.
        """
        file = self._file(path)
        if file is None or not file.exists():
            return None
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        if metadata["weights"] != digest([dict(block.named_parameters())]):
            raise ValueError(
                f"{file} was made from other weights; the model has changed since: give an empty `work_dir`."
            )
        result, rotations = copy.deepcopy(block), json.loads(metadata["rotations"])
        for name, entry in entries.items():
            linear = get_linear(result, name)
            empty = QAIGLinear(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                bits=entry["bits"],
                group_size=entry["group_size"],
                sym=entry["sym"],
                rotation=Rotation.of({"rotation": rotations.get(name)}),
                dtype=tensors[f"{name}.weight_scale"].dtype,
                device=linear.weight.device,
            )
            result.set_submodule(name, empty)
        result.load_state_dict(tensors)
        return result, BlockSummary(**json.loads(metadata["summary"]), resumed=True)

    def check(self, summary: BlockSummary, error: float) -> None:
        """Raise `RuntimeError` if a resumed block does not reproduce its recorded output error."""
        if not summary.resumed or math.isnan(summary.error) or math.isclose(summary.error, error, rel_tol=TOLERANCE):
            return
        raise RuntimeError(
            f"{summary.path}: resumed with an output error of {error:.4e}, but {summary.error:.4e} was recorded when "
            "it was finished; the forward passes are not the same as then. Start again with an empty `work_dir`."
        )

    def save(self, path: str, result: nn.Module, block: nn.Module, summary: BlockSummary) -> None:
        """Write a finished block; nothing to do for one that was resumed."""
        file = self._file(path)
        if file is None or summary.resumed:
            return
        facts = {k: v for k, v in asdict(summary).items() if k not in ("importance", "resumed")}
        rotations = {
            name: module.rotation._asdict()
            for name, module in result.named_modules()
            if isinstance(module, QAIGLinear) and module.rotation is not None
        }
        metadata = {
            "summary": json.dumps(facts),
            "rotations": json.dumps(rotations),
            "weights": digest([dict(block.named_parameters())]),
        }
        with written_whole(file) as temporary:
            save_file({k: v.contiguous() for k, v in result.state_dict().items()}, temporary, metadata)


def claim(folder: Path, run: Mapping[str, Any]) -> None:
    """
    Make `folder` the place of a run, described by `run` in its `run.json`.

    Raises:
        ValueError: it is the place of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.json"
    text = json.dumps(run, indent=1, sort_keys=True)
    if not file.exists():
        write(file, text)
    elif file.read_text() != text:
        known = json.loads(file.read_text())
        differs = sorted(key for key in run if run[key] != known.get(key))
        raise ValueError(
            f"`work_dir` {folder} holds another run (different {', '.join(differs) or 'version'}): give an "
            "empty folder, or the same configuration, model and data to resume it."
        )


def digest(items: Sequence[Mapping[str, Any]]) -> str:
    """Hash of all tensors in a list of mappings."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        for name in sorted(item):
            value = item[name]
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
