"""Layers to which vLLM's model gives no `quant_config`: most embeddings, and linears of some towers.

SigLIP's MLP is such a case, where its width is no multiple of 64. They ask the configuration of
the engine instead. vLLM makes the classes here where a model asks for its own.
"""

from __future__ import annotations

import inspect
from typing import Any

from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

_ROWS = (VocabParallelEmbedding, ParallelLMHead)
_LINEARS = (
    ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, ReplicatedLinear, RowParallelLinear
)  # fmt: skip


def ask_configuration(kind: type[QuantizationConfig]) -> None:
    """Lets layers ask the configuration of an engine for their method, if it is of a kind.

    Args:
        kind: of the configuration; its `is_packed(prefix)` tells whether a linear is.
    """
    for layer in (*_ROWS, *_LINEARS):
        if layer.__name__ not in op_registry_oot:
            PluggableLayer.register_oot(name=layer.__name__)(_asking(layer, kind))


def _asking(layer: type, kind: type[QuantizationConfig]) -> type:
    signature = inspect.signature(layer.__init__)  # type: ignore[misc]

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        if given.arguments.get("quant_config") is None and given.arguments.get("quant_method") is None:
            engine = get_current_vllm_config_or_none()
            if engine is not None and isinstance(engine.quant_config, kind) and (
                layer in _ROWS or engine.quant_config.is_packed(given.arguments.get("prefix", ""))
            ):  # fmt: skip
                given.arguments["quant_config"] = engine.quant_config
        layer.__init__(*given.args, **given.kwargs)  # type: ignore[misc]

    return type(layer.__name__, (layer,), {"__init__": make, "__doc__": layer.__doc__})
