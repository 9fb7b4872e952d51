"""Runs a block as a sample's forward called it, and compares its outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..utils.finite import are_finite, is_finite
from .interceptor import LayerInputs, TargetInputs
from .token_rows import row_mask


@torch.no_grad()
def forward(block: nn.Module, call: LayerInputs, *, on_trial: bool = True) -> Any:
    """Returns the block's output, whatever its form, on the block's device.

    Args:
        block: in full precision or quantized.
        call: what it is called with.
        on_trial: whether the model's caches stay as they are. Of the runs whose output the model goes on with, they get
            the keys and values.
    """
    call = call.to(next(block.parameters()).device, own_caches=on_trial)
    return block(*call.args, **call.kwargs)


def first_tensor(output: Any) -> Tensor:
    """Returns the hidden states in a block's output: its first tensor."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def hidden_states(call: LayerInputs) -> Tensor | None:
    """Returns the hidden states in a call: its first floating tensor, or what it names so (a mask may come first)."""
    named = call.kwargs.get("hidden_states")
    if isinstance(named, Tensor):
        return named
    return next((tensor for tensor in call.tensors if tensor.is_floating_point()), None)


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
