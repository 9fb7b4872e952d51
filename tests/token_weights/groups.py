"""Groups of a block with their inputs, ready to be weighed."""

from dataclasses import replace

import torch
from torch import nn

from transformers_qaig.calibration.decisions import BlockDecisions
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.distributed import Terms
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.token_weights.base import SubBlock, TokenWeights
from transformers_qaig.token_weights.official_code import UNIFORM_SEARCHES
from transformers_qaig.token_weights.registry import token_weights_of

BITS, GROUP = 3, 32
MODULES = ["self_attn", "mlp", "mlp.down_proj"]


def context_of(case, module: str, recipe: str, activation_bits: int = 16) -> tuple[GroupContext, BlockDecisions]:
    block, groups, gathered = case
    eight = activation_bits == 8
    scheme = WeightScheme(4 if eight else BITS, -1 if eight else GROUP, sym=eight, activation_bits=activation_bits)
    schemes = {name: scheme for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    group, weights = groups[module], token_weights_of(recipe_of(recipe))
    context = GroupContext(
        block,
        group,
        {name: schemes[name] for name in group.linears},
        Terms([replace(entered) for entered in gathered[module]]),
        recipe_of(recipe),
        torch.float32,
        True,
        counts_padding=weights.counts_padding,
    )
    return context, BlockDecisions(schemes)


def weigh(weights: TokenWeights, context: GroupContext, decisions: BlockDecisions) -> None:
    sub_block = SubBlock(
        context.block, context.block, context.group, context.inputs, decisions.schemes, False, torch.float32, True
    )
    for entered, found in zip(context.inputs, weights.weigh(sub_block)):
        entered.token_weights = found


def after_the_first_searches(recipe: str) -> TokenWeights:
    weights = token_weights_of(recipe_of(recipe))
    weights.restore({"searches": UNIFORM_SEARCHES})
    return weights
