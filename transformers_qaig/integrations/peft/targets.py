"""Lists the layers that `target_modules="all-linear"` means on a packed model, and what PEFT leaves out there."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ...nn.embedding import QAIGEmbedding
from ...nn.experts import QAIGExperts
from ...nn.linear import QAIGLinear
from ...utils.logging import get_logger

_logger = get_logger(__name__)


def packed_names(model: nn.Module) -> set[str]:
    """Lists the packed linears that "all-linear" means: not the output head, and none that has an adapter already."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, QAIGLinear) and module is not head and not name.startswith(adapted)
    }


def warn_of_experts(model: nn.Module) -> None:
    """Says which packed experts get no adapter: PEFT adapts linears, and a stack of experts is one module."""
    stacks = [name for name, module in model.named_modules() if isinstance(module, QAIGExperts)]
    if stacks:
        _logger.warning(
            '`target_modules="all-linear"` puts no adapter on %d packed stacks of experts (%s). The linears '
            "around them have one. To adapt experts, train on `model.dequantize()` with `target_parameters`.",
            len(stacks),
            _some_of(stacks),
        )


def warn_of_parameters(model: nn.Module, targets: Collection[str]) -> None:
    """Says which packed weights `target_parameters` names: PEFT finds no such parameter, and leaves them out.

    For some models with experts PEFT makes these names of `target_modules=["gate_proj", ...]`.
    """
    left_out = [
        weight
        for weight in _dense_names(model)
        if weight in targets or any(weight.endswith(f".{target}") for target in targets)
    ]
    if left_out:
        _logger.warning(
            "PEFT puts no adapter on %d packed weights that `target_parameters` names (%s). Name linears in "
            "`target_modules`. To adapt experts, train on `model.dequantize()`.",
            len(left_out),
            _some_of(left_out),
        )


def _some_of(names: Sequence[str]) -> str:
    """Returns the first three names, and dots for the others."""
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def _dense_names(model: nn.Module) -> list[str]:
    """Lists the parameters that are packed, by their names in full precision."""
    names: list[str] = []
    for name, module in model.named_modules():
        name = name.replace(".base_layer", "")
        if isinstance(module, QAIGExperts):
            names += [f"{name}.{parameter}" for parameter in module.stack.parameters]
        elif isinstance(module, (QAIGLinear, QAIGEmbedding)):
            names.append(f"{name}.weight")
    return names
