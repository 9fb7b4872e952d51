"""The samples that are held back from the searches, and the error of a trial on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from ..config.recipes import Recipe
from .block_outputs import OutputError, first_tensor, is_finite_where
from .exclusions import NotFinite
from .layer_inputs import TargetInputs, forward

VALIDATION_EVERY = 4
"""Every fourth sample is held back from the searches, for validation."""


def held_back_every(recipe: Recipe) -> int:
    """Returns the distance of the samples that a recipe holds back; 1 if it holds back none."""
    return VALIDATION_EVERY if recipe.validate else 1


class HeldBack:
    """The samples of a block that are held back, with their outputs in full precision.

    Args:
        block: in full precision.
        inputs: of the block.
        samples: that are held back; there may be none.
    """

    def __init__(self, block: nn.Module, inputs: TargetInputs, samples: Sequence[int]):
        self.inputs, self.samples = inputs, samples
        self._wanted = full_outputs(block, inputs, samples)

    def error(self, trial: nn.Module, what: str) -> float:
        """Computes the output error of a block.

        Args:
            trial: to compare with the block in full precision.
            what: it is, for the error.

        Raises:
            NotFinite: the output for one of the samples is not finite.
        """
        total = OutputError()

        def error_of(sample: int) -> OutputError:
            output, error = first_tensor(forward(trial, self.inputs.quantized[sample])), OutputError()
            if not error.add(output, self._wanted[sample].to(output.device), self.inputs.masks[sample]):
                raise NotFinite(sample, what)
            return error

        for error in self.inputs.of_each(self.samples, error_of):
            total.join(error)
        return 0.0 if math.isnan(total.value) else total.value  # no token to validate by


def full_outputs(block: nn.Module, inputs: TargetInputs, samples: Iterable[int]) -> dict[int, Tensor]:
    """Computes the outputs in full precision for this rank's of some samples, on the CPU.

    Raises:
        NotFinite: one of them is not finite at a real token.
    """
    outputs: dict[int, Tensor] = {}

    def run(sample: int) -> None:
        outputs[sample] = first_tensor(forward(block, inputs.full[sample])).cpu()
        if not is_finite_where(inputs.masks[sample], outputs[sample]):
            raise NotFinite(sample, "the full-precision output")

    inputs.of_each(samples, run)
    return outputs
