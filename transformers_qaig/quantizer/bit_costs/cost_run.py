"""`CostRun`: what stays the same while costs are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ...config import QAIGConfig
from ...data.calibration_data import CalibrationData
from ...execution.targets import Target
from ...structure import ModelStructure
from ...utils.logging import ProgressBar


@dataclass(frozen=True)
class CostRun:
    """What stays the same from width to width.

    Attributes:
        model: in full precision, in evaluation mode, on the CPU.
        structure: of the model.
        data: samples and their answers.
        config: recipe, seed.
        device: where to compute; None: where the model is.
        targets: what holds the weights, in execution order.
        uncalibrated: targets that no forward pass can stop at: their weights are rounded without data.
        bar: shows a step for every block and every sample.
    """

    model: PreTrainedModel
    structure: ModelStructure
    data: CalibrationData
    config: QAIGConfig
    device: torch.device | str | None
    targets: Sequence[Target]
    uncalibrated: Sequence[Target]
    bar: ProgressBar

    @property
    def blocks(self) -> list[nn.Module]:
        """What is on the device one at a time: the language model's blocks, and the tower's where costs need them."""
        items = [*self.targets, *self.uncalibrated]
        return [one.module for one in items if one.path in self.structure.blocks or _is_block(one)]


def _is_block(target: Target) -> bool:
    """Whether a target is an item of a list of blocks."""
    return target.path.rpartition(".")[2].isdecimal() and not isinstance(target.module, (nn.Linear, nn.Embedding))
