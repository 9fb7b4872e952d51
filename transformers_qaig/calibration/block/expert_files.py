"""Keeps what is learned of experts in files, where it takes more than a stated memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn

from ...nn.linear import get_linear
from ...plan.cost_estimate import LEARNED_BYTES
from ...rounding.learned import Keep
from ...utils.memory import free_memory
from .quantizer_settings import QuantizerSettings

SHARE_OF_FREE_MEMORY = 0.25
"""How much of what is free on the device may hold what calibrates experts, unless a limit is given."""


def memory_for_experts(limit: int | None, device: torch.device) -> int:
    """Returns the bytes that may calibrate the experts of a block at once."""
    return int(SHARE_OF_FREE_MEMORY * free_memory(device)) if limit is None else limit


def keepers(block: nn.Module, names: Sequence[str], settings: QuantizerSettings) -> Mapping[str, Keep]:
    """Says which weights of experts are learned in files: the first ones stay in memory, as many as fit.

    Args:
        block: in full precision.
        names: paths in the block of the weights that are learned.
        settings: say how much memory those take, and where files are.

    Returns:
        path of a weight → what keeps a tensor in a file; none for those that stay in memory.
    """
    found: dict[str, Keep] = {}
    memory = memory_for_experts(settings.expert_memory, next(block.parameters()).device)
    for name in names:
        memory -= LEARNED_BYTES * get_linear(block, name).weight.numel()
        if memory < 0:
            found[name] = partial(settings.scratch.keep, changes=True)
    return found
