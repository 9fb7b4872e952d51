"""The data that token weights are computed from before anything is quantized: samples, masks, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..data.calibration_data import CalibrationData
from ..execution.exclusions import Sample, gradient_advice
from ..execution.offload import copy_to_device, sequential_onload
from ..structure import ModelStructure
from ..utils.finite import is_finite
from ..utils.logging import ProgressBar, tqdm
from .token_gradients import token_gradients


@dataclass(frozen=True)
class WeightingData:
    """The calibration data, and the model that they are run through.

    Attributes:
        model: in full precision.
        blocks: of its decoder.
        calibration: the samples and their answers; those whose gradient is not finite are left out.
        masks: bool `[B, T]` per sample, True at real tokens.
        pictures: bool `[B, T]` per sample, True at the pictures' tokens.
        device: where to compute; None: where the model is.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    calibration: CalibrationData
    masks: Sequence[Tensor]
    pictures: Sequence[Tensor]
    device: torch.device | str | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        structure: ModelStructure,
        calibration: CalibrationData,
        device: torch.device | str | None,
    ) -> WeightingData:
        """Takes the blocks and the ids of picture tokens from the model's structure."""
        pictures = calibration.picture_masks(structure.picture_tokens)
        return cls(model, structure.answering_blocks, calibration, calibration.token_masks, pictures, device)

    @property
    def samples(self) -> Sequence[Sample]:
        """Model inputs."""
        return self.calibration.samples

    @property
    def answer_masks(self) -> Sequence[Tensor]:
        """Per sample bool `[B, T]`, True at the assistant's tokens."""
        return self.calibration.answer_masks

    def gradients(self) -> list[list[Tensor]]:
        """Computes the size of the answers' loss gradient at every token: sample → block → fp32 `[B, T]`.

        It is empty for a sample that is left out.
        """
        found, nothing = [], [torch.empty(0)] * len(self.blocks)
        ranks, exclusions = self.calibration.ranks, self.calibration.exclusions
        with (
            sequential_onload(self.model, self.blocks, self.device),
            tqdm(total=len(self.samples), desc="Token gradients", unit="sample") as bar,
        ):
            mine = [place for place in range(len(self.samples)) if ranks.owns(place)]
            for sample, gradients in zip(self.samples, ranks.of_each(zip(mine, mine), partial(self._of, bar))):
                if gradients and not all(map(is_finite, gradients)):
                    exclusions.add({sample.index: "the gradient of its answers' loss"}, gradient_advice())
                    gradients = []
                found.append(gradients or nothing)
        return found

    def _of(self, bar: ProgressBar, place: int) -> list[Tensor]:
        """Computes the gradients of one sample; none if it is left out."""
        bar.update(self.calibration.ranks.size)
        sample = self.samples[place]
        if sample in self.calibration.exclusions:
            return []
        return list(
            token_gradients(self.model, self.blocks, copy_to_device(sample, self.device), self.answer_masks[place])
        )
