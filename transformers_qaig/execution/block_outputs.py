"""Compares the outputs of a block, and checks that they are finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..utils.finite import are_finite, is_finite
from .layer_inputs import TargetInputs, hidden_states
from .token_rows import row_mask


def first_tensor(output: Any) -> Tensor:
    """Returns the hidden states in a block's output: its first tensor."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def is_finite_where(mask: Tensor, x: Tensor) -> bool:
    """Whether x is finite at the sample's real tokens."""
    return is_finite(x) or is_finite(x[row_mask(mask, x)])


def check_inputs_of(path: str, inputs: TargetInputs) -> None:
    """Leaves out the samples whose hidden states are not finite where they enter `path`, in either model."""
    both = {"full-precision": inputs.full, "quantized": inputs.quantized}
    if inputs.quantized is inputs.full:
        del both["quantized"]
    found: dict[int, str] = {}
    for name, calls in both.items():
        states = {sample: x for sample, call in calls.items() if (x := hidden_states(call)) is not None}
        for (sample, x), finite in zip(states.items(), are_finite(list(states.values()))):
            if not finite and not is_finite_where(inputs.masks[sample], x):
                found.setdefault(sample, f"the {name} hidden states that enter {path}")
    everywhere = {sample: where for of_rank in inputs.ranks.gather(found) for sample, where in of_rank.items()}
    if everywhere:
        inputs.exclude_samples(everywhere)


@dataclass
class OutputError:
    """Adds up Σ ‖a - b‖² / Σ ‖b‖² over the real tokens of all samples."""

    error: float = 0.0
    power: float = 0.0

    def add(self, a: Any, b: Any, mask: Tensor) -> bool:
        """Adds one sample, unless its error is not finite.

        Args:
            a: a block's output.
            b: the reference.
            mask: bool `[B, T]`, True at real tokens.

        Returns:
            whether its error is finite.
        """
        a, b = first_tensor(a).float().contiguous(), first_tensor(b).float().contiguous()
        # By rows first: torch splits the sum of a whole tensor among its threads. The host waits once, for the rows.
        rows = torch.stack([(a - b).square().sum(-1), b.square().sum(-1)]).cpu()
        real = row_mask(mask.cpu(), torch.empty((), device="cpu").expand(b.shape))
        error, power = (float(of[real].sum()) for of in rows)
        if not math.isfinite(error + power):
            return False
        self.error += error
        self.power += power
        return True

    def join(self, other: OutputError) -> None:
        """Adds the samples of another error."""
        self.error += other.error
        self.power += other.power

    @property
    def value(self) -> float:
        """The relative error; NaN if there is nothing to compare."""
        if self.power:
            return self.error / self.power
        return math.inf if self.error else math.nan
