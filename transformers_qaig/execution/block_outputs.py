"""Running a block as a sample's forward called it, comparing outputs, and putting the packed block in place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..calibration.group_inputs import is_finite_where, mask_for
from .interceptor import LayerInputs, TargetInputs


@torch.no_grad()
def forward(block: nn.Module, call: LayerInputs) -> Any:
    """The block's output, whatever its form, on the block's device."""
    call = call.to(next(block.parameters()).device)
    return block(*call.args, **call.kwargs)


def first_tensor(output: Any) -> Tensor:
    """The hidden states in a block's output: its first tensor."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def hidden_states(call: LayerInputs) -> Tensor | None:
    """What a block is called with: the first floating tensor of at most three dimensions (a mask has four)."""
    tensors = (tensor for tensor in call.tensors if tensor.is_floating_point() and tensor.ndim <= 3)
    return next(tensors, None)


def check_calls(streams: TargetInputs, path: str) -> None:
    """Leave out the samples whose hidden states are not finite where they enter `path`, in either stream."""
    both = {"full-precision": streams.calls, "quantized": streams.calls_q}
    if streams.calls_q is streams.calls:
        del both["quantized"]
    found: dict[int, str] = {}
    for name, calls in both.items():
        for sample, call in calls.items():
            x = hidden_states(call)
            if x is not None and not is_finite_where(streams.masks[sample], x):
                found.setdefault(sample, f"the {name} hidden states that enter {path}")
    if found:
        streams.leave_out(found)


@dataclass
class OutputError:
    """Σ ‖a - b‖² / Σ ‖b‖² over the real tokens of all samples added."""

    error: float = 0.0
    power: float = 0.0

    def add(self, a: Any, b: Any, mask: Tensor) -> bool:
        """
        Add one sample: outputs `a` and, as reference, `b`; mask bool [B, T], True at real tokens. Whether its error is
        finite: one that is not is not added.
        """
        a, b = first_tensor(a), first_tensor(b)
        mask = mask_for(mask, b)
        a, b = a[mask].float(), b[mask].float()
        # By rows first: torch splits the sum of a whole tensor among its threads.
        error, power = (float(x.square().sum(-1).sum()) for x in (a - b, b))
        if not math.isfinite(error + power):
            return False
        self.error += error
        self.power += power
        return True

    @property
    def value(self) -> float:
        """NaN if there is nothing to compare."""
        if self.power:
            return self.error / self.power
        return math.inf if self.error else math.nan


def install(block: nn.Module, result: nn.Module) -> None:
    """Move the packed block's contents into the model's own block object, which its parents and hooks refer to."""
    for name, module in result.named_modules():
        if not isinstance(module, nn.Linear) and isinstance(block.get_submodule(name), nn.Linear):
            block.set_submodule(name, module)
    for name, parameter in result.named_parameters():
        target = block.get_parameter(name)
        if target is not parameter:
            target.data.copy_(parameter.data)
