"""Training beside adapters: dense copies for `modules_to_save`, and `prepare_model_for_kbit_training`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from ...nn.embedding import QAIGEmbedding
from ...nn.linear import QAIGLinear
from ...nn.packed_tensors import PackedTensors


def save_dense_copies() -> None:
    """Makes `modules_to_save` train a dense copy of a packed head or of packed embeddings."""
    update = ModulesToSaveWrapper.update

    @functools.wraps(update)
    def update_packed(self: ModulesToSaveWrapper, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        original = self.original_module
        if adapter_name in self.modules_to_save:
            pass  # it is made already
        elif isinstance(original, (QAIGLinear, QAIGEmbedding)):
            self.modules_to_save[adapter_name] = original.to_dense()
        elif any(isinstance(module, PackedTensors) for module in original.modules()):
            raise ValueError(
                f"`modules_to_save` names a {type(original).__name__}, which holds packed weights, and they cannot be "
                "trained. Name the linears in it, or quantize with this layer left out (`modules_to_not_convert`)."
            )
        update(self, adapter_name, *args, **kwargs)

    ModulesToSaveWrapper.update = update_packed  # type: ignore[method-assign]


def prepare_packed(prepare: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Wraps PEFT's `prepare_model_for_kbit_training`, so that it treats a packed model as one of HQQ or GPTQ.

    It freezes everything and turns gradient checkpointing on. It casts nothing: a cast of scales would change the
    file, and double their memory.

    Args:
        prepare: PEFT's function.
    """

    @functools.wraps(prepare)
    def prepare_model_for_kbit_training(model: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(module, PackedTensors) for module in model.modules()):
            return prepare(model, *args, **kwargs)
        model.hqq_quantized = True  # what PEFT looks for, beside its own list of methods
        try:
            return prepare(model, *args, **kwargs)
        finally:
            del model.hqq_quantized

    return prepare_model_for_kbit_training
