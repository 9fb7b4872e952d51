"""`CalibrationData`: the model inputs to calibrate with, and which of their tokens are answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..distributed import ALONE, Ranks
from ..execution.exclusions import Exclusions, Sample, numbered
from .tensors import text_name, token_mask
from .views import SampleViews


@dataclass(frozen=True)
class CalibrationData:
    """What a model is calibrated with; [`load_inputs`] makes it from what a config asks for.

    Attributes:
        samples: model inputs on the CPU, one conversation each; none for a recipe that reads no data.
        answer_masks: bool `[B, T]` per sample, True at the tokens of its answers; the first position is False.
        exclusions: samples that are left out; those in which NaN or Inf turns up later are added.
        views: the first samples for people to look at, and the lengths of all.
        ranks: over which the samples are spread; all of them have the same data.
    """

    samples: Sequence[Sample] = ()
    answer_masks: Sequence[Tensor] = ()
    exclusions: Exclusions = field(default_factory=Exclusions)
    views: SampleViews = field(default_factory=SampleViews)
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, samples: Sequence[Mapping[str, Any]], answer_masks: Sequence[Tensor] | None = None) -> CalibrationData:
        """Makes the data of model inputs, none of which is left out. Without answer masks, every real token is one."""
        own = numbered(samples)
        masks = [token_mask(sample) for sample in own] if answer_masks is None else answer_masks
        return cls(own, masks, Exclusions(len(own)))

    @property
    def token_masks(self) -> list[Tensor]:
        """Per sample bool `[B, T]`, True at real tokens."""
        return [token_mask(sample) for sample in self.samples]

    @property
    def used_masks(self) -> list[Tensor]:
        """The token masks of the samples that are not left out."""
        return [mask for sample, mask in zip(self.samples, self.token_masks) if sample not in self.exclusions]

    def picture_masks(self, picture_ids: Sequence[int]) -> list[Tensor]:
        """Returns bool `[B, T]` per sample, on the CPU: True at the tokens of pictures; a decoder's own text has none.

        Args:
            picture_ids: of the tokens that stand for image patches.
        """
        ids = torch.tensor(picture_ids, dtype=torch.long, device="cpu")
        return [torch.isin(sample[text_name(sample)].cpu(), ids) for sample in self.samples]
