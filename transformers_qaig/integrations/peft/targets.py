"""Lists the layers that `target_modules="all-linear"` means on a packed model."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

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
            '`target_modules="all-linear"` puts no adapter on %d packed stacks of experts (%s%s). The linears '
            "around them have one. To adapt experts, train on `model.dequantize()` with `target_parameters`.",
            len(stacks),
            ", ".join(stacks[:3]),
            ", ..." if len(stacks) > 3 else "",
        )
