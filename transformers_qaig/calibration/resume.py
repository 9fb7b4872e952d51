"""Finished blocks in a work folder, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ..config import QAIGConfig
from ..nn.hadamard import Rotation
from ..nn.linear import QAIGLinear, get_linear
from ..plan.coverage import Plan
from ..report.summary import BlockSummary
from ..utils.hashing import digest
from .decisions import Schemes
from .work_folder import work_folder

TOLERANCE = 1e-2
"""How far a resumed block's output error may be from the recorded one, relative."""


class BlockStore(ExitStack):
    """
    The finished blocks of a run in its `work_dir`, which is the run's own until the end of this context.

    Resuming replays the finished blocks: each forward pass runs again, and a finished block's packed weights come from
    its file instead of being searched. A replayed block must show the output error it was saved with.

    Args:
        config: of the run; without a `work_dir` nothing is kept.
        plan: what is packed and how.
        samples: the calibration samples.
        model: in full precision; hashed if there is a `work_dir`.

    Raises:
        ValueError: the folder belongs to a run with another model, configuration or calibration data, is in use, or
            cannot be written.
    """

    def __init__(self, config: QAIGConfig, plan: Plan, samples: Sequence[Mapping[str, Any]], model: nn.Module):
        super().__init__()
        self.folder = None
        if config.calibration.work_dir is not None:
            run = {
                "config": {**config.to_dict(), "plan": None},
                "plan": plan,
                "samples": digest(samples),
                "weights": digest([model.state_dict()]),
            }
            self.folder = self.enter_context(work_folder(Path(config.calibration.work_dir), run))

    def load(self, path: str, block: nn.Module, entries: Schemes) -> tuple[nn.Module, BlockSummary] | None:
        """The finished block at `path`, or None."""
        found = self.folder.load(path) if self.folder is not None else None
        if found is None:
            return None
        tensors, facts = found
        result, rotations = copy.deepcopy(block), json.loads(facts["rotations"])
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
        return result, BlockSummary(**json.loads(facts["summary"]), resumed=True)

    def check(self, summary: BlockSummary, error: float) -> None:
        """Raise `RuntimeError` if a resumed block does not reproduce its recorded output error."""
        if not summary.resumed or math.isnan(summary.error) or math.isclose(summary.error, error, rel_tol=TOLERANCE):
            return
        raise RuntimeError(
            f"{summary.path}: resumed with an output error of {error:.4e}, but {summary.error:.4e} was recorded when "
            "it was finished; the forward passes are not the same as then. Start again with an empty `work_dir`."
        )

    def save(self, path: str, result: nn.Module, summary: BlockSummary) -> None:
        """Keep a finished block; nothing to do for one that was resumed."""
        if self.folder is None or summary.resumed:
            return
        facts = {k: v for k, v in asdict(summary).items() if k not in ("importance", "resumed")}
        rotations = {
            name: module.rotation._asdict()
            for name, module in result.named_modules()
            if isinstance(module, QAIGLinear) and module.rotation is not None
        }
        kept = {"summary": json.dumps(facts), "rotations": json.dumps(rotations)}
        self.folder.save(path, result.state_dict(), kept)
