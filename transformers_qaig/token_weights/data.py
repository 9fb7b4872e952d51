"""The data that token weights are computed from before anything is quantized: samples, masks, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..attribution.gradients import token_gradients
from ..distributed import ALONE, Ranks
from ..execution.exclusions import Exclusions, Sample, gradient_advice
from ..execution.sequential_onload import moved, sequential_onload
from ..utils.finite import is_finite
from ..utils.logging import ProgressBar, tqdm


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
        ranks: over which the samples are spread.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    samples: Sequence[Sample]
    masks: Sequence[Tensor]
    answers: Sequence[Tensor]
    pictures: Sequence[Tensor]
    device: torch.device | str | None
    exclusions: Exclusions
    ranks: Ranks = ALONE

    def gradients(self) -> list[list[Tensor]]:
        """Computes the size of the answers' loss gradient at every token: sample → block → fp32 `[B, T]`.

        It is empty for a sample that is left out.
        """
        found, nothing = [], [torch.empty(0)] * len(self.blocks)
        with (
            sequential_onload(self.model, self.blocks, self.device),
            tqdm(total=len(self.samples), desc="Token gradients", unit="sample") as bar,
        ):
            mine = [place for place in range(len(self.samples)) if self.ranks.owns(place)]
            for sample, gradients in zip(self.samples, self.ranks.of_each(zip(mine, mine), partial(self._of, bar))):
                if gradients and not all(map(is_finite, gradients)):
                    self.exclusions.add({sample.index: "the gradient of its answers' loss"}, gradient_advice())
                    gradients = []
                found.append(gradients or nothing)
        return found

    def _of(self, bar: ProgressBar, place: int) -> list[Tensor]:
        """Computes the gradients of one sample; none if it is left out."""
        bar.update(self.ranks.size)
        sample = self.samples[place]
        if sample in self.exclusions:
            return []
        return list(token_gradients(self.model, self.blocks, moved(sample, self.device), self.answers[place]))
