"""`QuantizerSettings`: what stays the same from block to block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ..config import QAIGConfig
from ..config.recipes import Recipe
from ..config.size import parse_memory
from ..equalization.finder import GroupFinder
from ..nn.linear import get_linear
from ..plan.cost_estimate import LEARNED_BYTES
from ..rounding.learned import Keep
from ..token_weights.base import BlockWeights, TokenWeights
from ..token_weights.data import WeightingData
from ..token_weights.precomputed import text_alone
from ..token_weights.registry import precompute, token_weights_of
from ..utils.memory import free_memory
from ..utils.scratch import ScratchFiles

SHARE_OF_FREE_MEMORY = 0.25
"""How much of what is free on the device may hold what calibrates experts, unless a limit is given."""


@dataclass(frozen=True)
class QuantizerSettings:
    """The settings that stay the same from block to block.

    Attributes:
        recipe: the steps.
        finder: finds a block's groups.
        token_weights: weigh the tokens in the searches.
        damping_weights: of the held-back tokens that choose a damping; 1 for a sample without. None to choose none.
        seed: of what is random.
        all_experts: whether every token counts for every expert.
        expert_memory: bytes that second moments of experts, or what is learned of them, may take at once; None for a
            share of what is free.
        scratch: for what takes more.
    """

    recipe: Recipe
    finder: GroupFinder
    token_weights: TokenWeights
    damping_weights: BlockWeights | None = None
    seed: int = 0
    all_experts: bool = False
    expert_memory: int | None = None
    scratch: ScratchFiles = field(default_factory=ScratchFiles)

    def damping_weights_of(self, block: nn.Module) -> Mapping[int, Tensor] | None:
        """Returns held-back sample → what weighs its tokens at a block of the model; None if none is to be chosen."""
        return None if self.damping_weights is None else self.damping_weights.get(block, {})

    def keepers(self, block: nn.Module, names: Sequence[str]) -> Mapping[str, Keep]:
        """Says which weights of experts are learned in files: the first ones stay in memory, as many as fit.

        Args:
            block: in full precision.
            names: paths in the block of the weights that are learned.

        Returns:
            path of a weight → what keeps a tensor in a file; none for those that stay in memory.
        """
        found: dict[str, Keep] = {}
        memory = memory_for_experts(self.expert_memory, next(block.parameters()).device)
        for name in names:
            memory -= LEARNED_BYTES * get_linear(block, name).weight.numel()
            if memory < 0:
                found[name] = partial(self.scratch.store, changes=True)
        return found


def memory_for_experts(limit: int | None, device: torch.device) -> int:
    """Returns the bytes that may calibrate the experts of a block at once."""
    return int(SHARE_OF_FREE_MEMORY * free_memory(device)) if limit is None else limit


def settings_of(
    config: QAIGConfig, recipe: Recipe, finder: GroupFinder, weighting: WeightingData | None = None
) -> QuantizerSettings:
    """Makes the settings of a run.

    Args:
        config: of the run.
        recipe: the steps.
        finder: finds a block's groups.
        weighting: what token weights may be computed from before the first block is quantized; None for none of those.
    """
    run = config.calibration
    known, damping = (None, None) if weighting is None else (precompute(recipe, weighting), text_alone(weighting))
    return QuantizerSettings(
        recipe,
        finder,
        token_weights_of(recipe, config.seed, known),
        damping,
        config.seed,
        run.moe_calibrate_all_experts,
        None if run.expert_memory is None else parse_memory(run.expert_memory),
        ScratchFiles(run.work_path),
    )
