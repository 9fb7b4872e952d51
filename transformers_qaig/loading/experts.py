"""Replaces stacks of experts in a model: by linears for calibration, by packed experts for the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..formats.scheme import Plan
from ..nn.experts import QAIGExperts
from ..nn.experts_layout import ExpertsLayout, find_experts
from ..nn.experts_module import LinearExperts
from ..plan.experts import packed_stacks, stack_schemes
from ..utils.memory import return_freed_memory

_TOKENS = 4
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def skeleton_experts(model: nn.Module, plan: Plan) -> set[str]:
    """Puts packed experts without content in the places of the stacks that `plan` names.

    Returns:
        the paths of those stacks.

    Raises:
        ValueError: a stack is named in part, or cannot be stored so.
    """
    packed = set()
    for stack, layout in find_experts(model).items():
        if schemes := stack_schemes(stack, layout, plan):
            try:
                experts = QAIGExperts.like(model.get_submodule(stack), schemes, device="meta")
            except ValueError as error:
                raise ValueError(f"The plan does not fit {stack}: {error}") from error
            model.set_submodule(stack, experts)
            packed.add(stack)
    return packed


def linearize_experts(model: PreTrainedModel, stacks: Mapping[str, ExpertsLayout], plan: Plan) -> None:
    """Puts linears in the places of the stacks that `plan` names. Their weights are views: nothing is copied.

    Args:
        model: with its weights, on the CPU.
        stacks: those of the model, by path.
        plan: names the weights of a stack all together.

    Raises:
        ValueError: the linears do not compute what the model's own class does.
    """
    for stack, layout in packed_stacks(stacks, plan).items():
        original = model.get_submodule(stack)
        linears = LinearExperts.of(original)
        _check_alike(stack, layout, original, linears)
        model.set_submodule(stack, linears)


@torch.no_grad()
def _check_alike(stack: str, layout: ExpertsLayout, original: nn.Module, linears: LinearExperts) -> None:
    """Raises `ValueError` if both give different outputs for a few random tokens."""
    example = original.get_parameter("down_proj")
    if example.is_meta:
        return
    inputs = _random_inputs(layout, example)
    wanted, got = original(*inputs).double(), linears(*inputs).double()
    size = wanted.abs().max()
    if torch.isfinite(size) and not (wanted - got).abs().max() <= _TOLERANCE[example.dtype] * size:
        raise ValueError(
            f"{stack}: {type(original).__name__} does not run its experts as others do, so they cannot be packed. "
            "Leave them out with `modules_to_not_convert`."
        )


def _random_inputs(layout: ExpertsLayout, like: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    count = layout.num_choices
    tokens = _TOKENS if layout.is_routed or layout.is_shared else _TOKENS * count
    hidden = torch.randn(tokens, layout.hidden_size, generator=generator).to(like)
    if layout.is_shared:
        return hidden, torch.rand(tokens, count, generator=generator).to(like)
    if not layout.is_routed:
        return (hidden,)
    chosen = torch.rand(tokens, count, generator=generator).topk(min(2, count)).indices
    weights = torch.rand(tokens, chosen.shape[1], generator=generator).to(like)
    return hidden, chosen, weights


def stack_experts(model: PreTrainedModel, keep: Callable[[Tensor], Tensor] | None = None) -> None:
    """Joins the packed linears of each stack to packed experts.

    Args:
        model: with packed linears.
        keep: called with each large tensor that is made; returns what takes its place.
    """
    paths = [path for path, module in model.named_modules() if isinstance(module, LinearExperts)]
    for path in paths:
        linears = model.get_submodule(path)
        assert isinstance(linears, LinearExperts)
        experts = QAIGExperts.from_linears(linears)
        if keep is not None:
            for parameter in experts.parameters(recurse=False):
                parameter.data = keep(parameter.data)
        model.set_submodule(path, experts)
        del linears  # one stack at a time is there twice
        return_freed_memory()
