"""Linears that a model of vLLM makes as `nn.Linear`: projectors of PaliGemma and InternVL, Mistral 3's merger.

They have neither a `quant_config` nor a name while they are made. So those that a file holds packed become vLLM's own
linears once the model is whole, before its weights are loaded. vLLM's models of Transformers' classes do the same.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from torch import nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from ..engines.methods import refuse_dense


def replace_in_models(kind: type[QuantizationConfig]) -> None:
    """Lets models whose configuration is of a kind have their plain linears replaced, where these are packed.

    Args:
        kind: of the configuration; its `is_packed(prefix)` tells whether a linear is.
    """
    create = BaseModelLoader.create_model
    if hasattr(create, "__wrapped__"):
        return

    @wraps(create)
    def create_model(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        model = create(self, vllm_config, *args, **kwargs)
        if isinstance(vllm_config.quant_config, kind):
            with set_current_vllm_config(vllm_config):
                replace(model, vllm_config.quant_config)
            refuse_dense(model, vllm_config.quant_config.plan)
        return model

    BaseModelLoader.create_model = create_model


def replace(model: nn.Module, configuration: Any) -> None:
    """Replaces the plain linears of a model that a configuration says are packed.

    Args:
        model: whose weights are not loaded yet.
        configuration: is asked for each by its name.
    """
    plain = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear]
    for name, layer in plain:
        if configuration.is_packed(name):
            packed = ReplicatedLinear(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                params_dtype=layer.weight.dtype,
                quant_config=configuration,
                prefix=name,
                return_bias=False,
            )
            model.set_submodule(name, packed)
