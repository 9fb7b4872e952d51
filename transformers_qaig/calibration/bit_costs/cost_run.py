"""`CostRun`: what stays the same while costs are measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ...config import QAIGConfig
from ...data.calibration_data import CalibrationData
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
        bar: shows a step for every block and every sample.
    """

    model: PreTrainedModel
    structure: ModelStructure
    data: CalibrationData
    config: QAIGConfig
    device: torch.device | str | None
    bar: ProgressBar
