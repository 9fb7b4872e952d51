"""The data that token weights are computed from before anything is quantized: samples, masks, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attribution.gradients import token_gradients
from ..execution.exclusions import Exclusions, Sample, gradient_advice
from ..execution.sequential_onload import moved, sequential_onload
from ..utils.finite import is_finite
from ..utils.logging import tqdm


@dataclass(frozen=True)
class WeightingData:
    """The calibration data, and the model that they are run through.

    Attributes:
        model: in full precision.
        blocks: of its decoder.
        samples: model inputs.
        masks: bool `[B, T]` per sample, True at real tokens.
        answers: bool `[B, T]` per sample, True at the assistant's tokens.
        pictures: bool `[B, T]` per sample, True at the pictures' tokens.
        device: where to compute; None: where the model is.
        exclusions: samples that are left out; those whose gradient is not finite are added.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    samples: Sequence[Sample]
    masks: Sequence[Tensor]
    answers: Sequence[Tensor]
    pictures: Sequence[Tensor]
    device: torch.device | str | None
    exclusions: Exclusions

    def gradients(self) -> list[list[Tensor]]:
        """Computes the size of the answers' loss gradient at every token: sample → block → fp32 `[B, T]`.

        It is empty for a sample that is left out.
        """
        found = []
        with sequential_onload(self.model, self.blocks, self.device):
            pairs = list(zip(self.samples, self.answers))
            for sample, answer in tqdm(pairs, desc="Token gradients", unit="sample"):
                found.append(self._gradients_of(sample, answer) or [torch.empty(0)] * len(self.blocks))
        return found

    def _gradients_of(self, sample: Sample, answer: Tensor) -> list[Tensor]:
        if sample in self.exclusions:
            return []
        gradients = token_gradients(self.model, self.blocks, moved(sample, self.device), answer)
        if all(map(is_finite, gradients)):
            return list(gradients)
        self.exclusions.add({sample.index: "the gradient of its answers' loss"}, gradient_advice())
        return []
