"""Puts packed modules without weights into a model on the meta device, for quantizing or loading."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace as replaced
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel

from ..formats.scheme import Plan, WeightScheme
from ..nn.embedding import QAIGEmbedding
from ..nn.linear import QAIGLinear, get_linear
from ..plan.allocate import SchemeOption, allocate
from ..plan.experts import owner
from .experts import skeleton_experts
from .tied_embeddings import install_tied_embeddings, replace_everywhere


def pack_modules(model: PreTrainedModel, plan: Plan) -> None:
    """Puts packed modules without content in the places that `plan` names; tied ones are tied.

    Raises:
        ValueError: a scheme that its weight cannot have, or a model in float64.
    """
    if plan and model.dtype == torch.float64:
        raise ValueError(
            "dtype=torch.float64: scales are stored in 32 bits at most. Load the model with dtype=torch.float32."
        )
    stacks = skeleton_experts(model, plan)
    for path, scheme in plan.items():
        if owner(path, stacks) in stacks:
            continue
        try:
            _pack(model, path, scheme)
        except ValueError as error:
            raise ValueError(f"The plan does not fit {path}: {error}") from error
    install_tied_embeddings(model, plan)


def _pack(model: PreTrainedModel, path: str, scheme: WeightScheme) -> None:
    module = model.get_submodule(path)
    if isinstance(module, nn.Embedding):
        replace_everywhere(model, module, QAIGEmbedding.like(module, scheme, device="meta"))
        return
    model.set_submodule(path, QAIGLinear.like(get_linear(model, path), scheme, device="meta"))


def packed_skeleton(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Returns a copy of `model` on the meta device as it will be once packed; `model` stays as it is."""
    memo: dict[int, object] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    skeleton = copy.deepcopy(model, memo)
    skeleton.tie_weights()
    pack_modules(skeleton, plan)
    return skeleton


def likely_plan(options: Mapping[str, Sequence[SchemeOption]], budget: float, fused: Sequence[Sequence[str]]) -> Plan:
    """Makes a plan that uses up the budget, before any weight is read.

    Its costs are halved with every half bit, as rounding errors are, and do not depend on the weights.

    Args:
        options: weight path → ways to store it.
        budget: stored bits.
        fused: sets of paths that must get equal schemes.
    """
    guessed = {
        path: [replaced(option, cost=option.size * 4.0**-option.bits) for option in choices]
        for path, choices in options.items()
    }
    return allocate(guessed, budget, fused).schemes
