"""Leaves out calibration samples in which NaN or Inf turned up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils.finite import is_finite
from ..utils.logging import get_logger

logger = get_logger(__name__)

MOST = 0.05
"""The largest share of the samples that may be left out; a single sample always may."""


class Sample(dict[str, Tensor]):
    """A sample's model inputs, with the index of its record in the data set."""

    def __init__(self, inputs: Mapping[str, Tensor], index: int):
        super().__init__(inputs)
        self.index = index


def numbered(samples: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """Returns the samples with their indices; samples without one are numbered in order."""
    return [sample if isinstance(sample, Sample) else Sample(sample, i) for i, sample in enumerate(samples)]


class NotFinite(ArithmeticError):
    """A sample is not finite, and the computation must be repeated without it."""

    def __init__(self, sample: int, where: str):
        super().__init__(f"sample {sample}: NaN or Inf in {where}")
        self.sample, self.where = sample, where

    def __reduce__(self) -> tuple[type[NotFinite], tuple[int, str]]:
        return NotFinite, (self.sample, self.where)  # another process may raise it, too


def place_in(samples: Sequence[int]) -> Callable[[Exception], int]:
    """Returns a function that says where among `samples` an error belongs: at the sample it names, or before all."""
    return lambda error: samples.index(error.sample) if isinstance(error, NotFinite) else -1


class Exclusions:
    """The samples that are left out of a run. All readers of the samples share it, so that a sample is named once.

    Attributes:
        total: samples that there were before any was left out.
        where: index of a sample → where NaN or Inf turned up.
    """

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.where: dict[int, str] = {}

    def __contains__(self, sample: Sample) -> bool:
        return sample.index in self.where

    def add(self, found: Mapping[int, str], advice: str) -> None:
        """Leaves out some samples, with a warning for each.

        Args:
            found: index → where.
            advice: what to do, for the error.

        Raises:
            ValueError: that would be all samples, or more than one and more than `MOST` of them.
        """
        new = {index: where for index, where in found.items() if index not in self.where}
        self.where |= new
        count = len(self.where)
        if count == self.total or count > max(1, int(MOST * self.total)):
            named = "; ".join(f"sample {index}, in {where}" for index, where in sorted(self.where.items())[:3])
            more = f"; and {count - 3} more" if count > 3 else ""
            raise ValueError(
                f"NaN or Inf turned up in {count} of {self.total} calibration samples ({named}{more}), and at most "
                f"{MOST:.0%} of them are left out. {advice}"
            )
        for index, where in sorted(new.items()):
            logger.warning("Calibration sample %d is left out: NaN or Inf in %s.", index, where)


def check_inputs(samples: Sequence[Sample], exclusions: Exclusions) -> list[bool]:
    """Leaves out the samples with an input that is not finite; returns which ones stay."""
    exclusions.total = len(samples)
    found = {}
    for sample in samples:
        bad = [key for key, value in sample.items() if "mask" not in key and not _is_finite(value)]
        if bad:
            found[sample.index] = f"its input {bad[0]!r}"
    if found:
        exclusions.add(found, "Mend these samples, or remove them from the `dataset`.")
    return [sample not in exclusions for sample in samples]


def overflow_advice(dtype: torch.dtype) -> str:
    """Returns what to do about a forward pass that is not finite, though its inputs are."""
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        return f"The forward pass overflows in {name}: load the model with dtype=torch.bfloat16 or dtype=torch.float32."
    return f"The forward pass is not finite in {name}: remove these samples, and check that the model itself works."


def gradient_advice() -> str:
    """Returns what to do about gradients that are not finite, though the forward pass may be."""
    return "Gradients are not finite in float32: remove these samples, and check that the model can be trained."


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or is_finite(value)
