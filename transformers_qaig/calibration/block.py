"""Running a block as a sample's forward called it, comparing outputs, and putting the packed block in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .doors import BlockCall
from .subblock import mask_for


@torch.no_grad()
def forward(block: nn.Module, call: BlockCall) -> Any:
    """The block's output, whatever its form, on the block's device."""
    call = call.to(next(block.parameters()).device)
    return block(*call.args, **call.kwargs)


def first_tensor(output: Any) -> Tensor:
    """The hidden states in a block's output: its first tensor."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


@dataclass
class OutputError:
    """Σ ‖a - b‖² / Σ ‖b‖² over the real tokens of all samples added."""

    error: float = 0.0
    power: float = 0.0

    def add(self, a: Any, b: Any, mask: Tensor) -> None:
        """Add one sample: outputs `a` and, as reference, `b`; mask bool [B, T], True at real tokens."""
        a, b = first_tensor(a), first_tensor(b)
        mask = mask_for(mask, b)
        a, b = a[mask].float(), b[mask].float()
        self.error += float((a - b).square().sum())
        self.power += float(b.square().sum())

    @property
    def value(self) -> float:
        return self.error / self.power if self.power else float("nan")


def install(block: nn.Module, result: nn.Module) -> None:
    """Move the packed block's contents into the model's own block object, which its parents and hooks refer to."""
    for name, module in result.named_modules():
        if not isinstance(module, nn.Linear) and isinstance(block.get_submodule(name), nn.Linear):
            block.set_submodule(name, module)
    for name, parameter in result.named_parameters():
        target = block.get_parameter(name)
        if target is not parameter:
            target.data.copy_(parameter.data)
