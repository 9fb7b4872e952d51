"""`QuantizerSettings`: what stays the same from block to block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from ...config import QAIGConfig
from ...config.recipes import Recipe
from ...config.size import parse_memory
from ...equalization.finder import GroupFinder
from ...execution.group_inputs import GroupInputs
from ...token_weights.base import BlockWeights, TokenWeights
from ...token_weights.precomputed import weights_at_rows
from ...utils.scratch import ScratchFiles


@dataclass(frozen=True)
class QuantizerSettings:
    """The settings that stay the same from block to block.

    Attributes:
        recipe: the steps.
        finder: finds a block's groups.
        token_weights: weigh the tokens in the searches.
        damping_weights: of the held-back tokens that choose a damping, 1 where it has none; None to choose none.
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

    def damping_weights_of(self, block: nn.Module) -> Callable[[GroupInputs], Tensor] | None:
        """Returns what weighs held-back inputs of a block of the model; None if no damping is to be chosen."""
        known = self.damping_weights
        return None if known is None else partial(weights_at_rows, by_sample=known.get(block, {}))


def settings_of(
    config: QAIGConfig,
    recipe: Recipe,
    finder: GroupFinder,
    token_weights: TokenWeights,
    damping_weights: BlockWeights | None = None,
) -> QuantizerSettings:
    """Makes the settings of a run."""
    run = config.calibration
    memory = None if run.expert_memory is None else parse_memory(run.expert_memory)
    scratch = ScratchFiles(run.work_path)
    experts = run.moe_calibrate_all_experts
    return QuantizerSettings(recipe, finder, token_weights, damping_weights, config.seed, experts, memory, scratch)
