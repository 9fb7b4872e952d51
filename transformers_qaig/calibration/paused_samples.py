"""`PausedSamples`: every sample waits at a target in two models, in full precision and in the one quantized so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..data.calibration_data import CalibrationData
from ..data.tensors import token_mask
from ..execution.block_outputs import check_inputs_of
from ..execution.exclusions import overflow_advice
from ..execution.layer_inputs import TargetInputs
from ..execution.paused_forward import PausedForwards, waiting_device
from ..execution.targets import Target
from ..structure import ModelStructure

NO_PADDING = torch.ones(0, 0, dtype=torch.bool)
"""A token mask for hidden states that are not the text's, such as an image's: all their tokens are real."""


class PausedSamples:
    """Runs this rank's share of the samples from target to target, within its context.

    Args:
        model: in full precision; its targets may be quantized one after the other.
        structure: of the model.
        targets: in execution order.
        data: samples that are left out are not run.
        every: the distance of the samples that are held back; see [`Ranks.owns`].
        device: in whose memory inputs may wait if they take little of it; None: they wait on the CPU.
        quantizes: whether the targets are quantized meanwhile; otherwise full precision stands for both models.

    Attributes:
        full: the forward passes in full precision.
        most_bytes: the most that their inputs have held at a target.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: ModelStructure,
        targets: Sequence[Target],
        data: CalibrationData,
        every: int,
        device: torch.device | str | None,
        *,
        quantizes: bool = True,
    ):
        tokens = sum(mask.numel() for mask in data.token_masks)
        waits = waiting_device(device, tokens, structure.token_bytes)
        modules, samples = [target.module for target in targets], data.samples
        absent = [i for i in range(len(samples)) if not data.ranks.owns(i, every) or samples[i] in data.exclusions]
        self._forwards = [
            PausedForwards(model, modules, samples, absent=absent, inputs_device=waits) for _ in range(1 + quantizes)
        ]
        self.full, self.most_bytes = self._forwards[0], 0
        self._targets, self._data, self._dtype = targets, data, structure.dtype
        self._pictures = dict(enumerate(data.picture_masks(structure.picture_tokens)))

    def __enter__(self) -> PausedSamples:
        with ExitStack() as stack:
            for forwards in self._forwards:
                stack.enter_context(forwards)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def at(self, index: int) -> TargetInputs:
        """Returns the inputs with which the samples wait at a target, without those that are not finite."""
        target, waiting = self._targets[index], [forwards.inputs(index) for forwards in self._forwards]
        name = target.token_input
        inputs = TargetInputs(
            waiting[0],
            waiting[-1],
            [token_mask(sample, name) if name else NO_PADDING for sample in self._data.samples],
            self.exclude,
            self._data.ranks,
            self._pictures if name == "input_ids" else {},
        )
        self.most_bytes = max(self.most_bytes, self.full.nbytes())
        check_inputs_of(target.path, inputs)
        return inputs

    def resume(self, sample: int, outputs: Iterable[Any]) -> None:
        """Lets a sample go on to its next target, with the output of this one in each of the models."""
        for forwards, output in zip(self._forwards, outputs):
            forwards.resume(sample, output)

    def exclude(self, found: Mapping[int, str]) -> None:
        """Leaves samples out: position → where NaN or Inf turned up. Raises as [`Exclusions`] does."""
        samples = self._data.samples
        where = {samples[position].index: what for position, what in found.items()}
        self._data.exclusions.add(where, overflow_advice(self._dtype))
        self._drop(found)

    def drop_left_out(self) -> None:
        """Ends the forward passes of the samples that are left out by now."""
        self._drop(i for i, sample in enumerate(self._data.samples) if sample in self._data.exclusions)

    def _drop(self, positions: Iterable[int]) -> None:
        for position in positions:
            for forwards in self._forwards:
                forwards.drop(position)
