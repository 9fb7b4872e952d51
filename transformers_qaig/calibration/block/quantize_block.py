"""Quantizes one block from start to end: decisions, again without samples that are not finite, packed linears."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ...execution.exclusions import NotFinite
from ...execution.interceptor import TargetInputs
from ...formats.scheme import Plan
from ...report.summary import TargetSummary
from .block_quantizer import BlockQuantizer
from .decisions import BlockDecisions, cast_like, dtype_of, in_float32, pack
from .quantizer_settings import QuantizerSettings


@dataclass
class BlockResult:
    """A quantized block.

    Attributes:
        module: with packed linears.
        schemes: path of each of them in the block → how it is stored.
        summary: of the decisions.
        state: of the token weights, after the block.
    """

    module: nn.Module
    schemes: Plan
    summary: TargetSummary
    state: Mapping[str, int] = field(default_factory=dict)


def quantize_block(
    block: nn.Module, path: str, schemes: Plan, inputs: TargetInputs, settings: QuantizerSettings
) -> BlockResult:
    """Packs a block's linears. Arguments as in [`decide`]; the block is not changed."""
    if not schemes:
        return BlockResult(copy.deepcopy(block), {}, TargetSummary(path), settings.token_weights.state())
    decisions, summary = decide(block, path, schemes, inputs, settings)
    module = cast_like(pack(in_float32(block), decisions, dtype_of(block, schemes), path), block)
    return BlockResult(module, decisions.schemes, summary, settings.token_weights.state())


def decide(
    block: nn.Module, path: str, schemes: Plan, inputs: TargetInputs, settings: QuantizerSettings
) -> tuple[BlockDecisions, TargetSummary]:
    """Makes the decisions for a block. Arguments as in [`BlockQuantizer`], but `inputs` may hold no sample.

    If a sample is not finite on the way, it is left out, and the block is begun again without it.
    """
    recipe, token_weights = settings.recipe, settings.token_weights
    before, left_out = token_weights.state(), []
    while recipe.calibrates and inputs.samples():
        token_weights.restore(before)
        quantizer = BlockQuantizer(block, path, schemes, inputs, settings)
        try:
            decisions = quantizer.decide()
        except NotFinite as found:
            left_out.append((found.sample, f"{found.where} in {path}"))
            inputs.exclude_samples(dict(left_out[-1:]))
        else:
            quantizer.summary.left_out = left_out
            return decisions, quantizer.summary
    return BlockDecisions(schemes, recipe.include_zero), TargetSummary(path, left_out=left_out)
