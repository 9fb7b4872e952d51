"""Splits a target's output error: what came in with its input, and where it is, at tokens of pictures or of text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .block_outputs import OutputError
from .layer_inputs import LayerInputs, hidden_states


@dataclass
class StreamErrors:
    """Relative squared errors over all samples, of the quantized model's hidden states against full precision's.

    Attributes:
        entering: of the hidden states that the target reads.
        pictures: of its output at tokens of pictures.
        text: of its output at all other tokens.
    """

    entering: OutputError = field(default_factory=OutputError)
    pictures: OutputError = field(default_factory=OutputError)
    text: OutputError = field(default_factory=OutputError)

    def add(
        self, calls: tuple[LayerInputs, LayerInputs], outputs: tuple[Any, Any], mask: Tensor, pictures: Tensor | None
    ) -> None:
        """Adds one sample.

        Args:
            calls: what the target is called with, in the quantized and in the full-precision model.
            outputs: what it returns, in the same order.
            mask: bool `[B, T]`, True at real tokens.
            pictures: bool `[B, T]`, True at tokens of pictures; None if the target's tokens are not the text's.
        """
        x_q, x = (hidden_states(call) for call in calls)
        if x_q is not None and x is not None and x_q.shape == x.shape:
            self.entering.add(x_q, x, mask)
        if pictures is not None and pictures.shape == mask.shape and bool(pictures.any()):
            self.pictures.add(*outputs, mask & pictures)
            self.text.add(*outputs, mask & ~pictures)

    def join(self, other: StreamErrors) -> None:
        """Adds the samples of other errors."""
        self.entering.join(other.entering)
        self.pictures.join(other.pictures)
        self.text.join(other.text)
