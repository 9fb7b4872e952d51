"""Linears that a model of vLLM makes without a name: projectors of PaliGemma and InternVL, Mistral 3's merger.

Most are `nn.Linear`, some vLLM's own, such as MiniCPM3's `q_a_proj`. None can ask for its method while it is made. So
those that a file holds packed are replaced once the model is whole, before its weights are loaded. vLLM's models of
Transformers' classes do the same with `nn.Linear`.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from torch import nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, ReplicatedLinear
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
            vllm_config.quant_config.plan.check_blocks()
            refuse_dense(model, vllm_config.quant_config.plan)
        return model

    BaseModelLoader.create_model = create_model


def replace(model: nn.Module, configuration: Any) -> None:
    """Replaces the linears of a model that have no name of their own, and that a configuration says are packed.

    Args:
        model: whose weights are not loaded yet.
        configuration: is asked for each by its place in the model.
    """
    nameless = [(name, layer) for name, layer in model.named_modules() if _is_nameless(layer)]
    for name, layer in nameless:
        if configuration.is_packed(name):
            model.set_submodule(name, _named(layer, name, configuration))


def _is_nameless(layer: nn.Module) -> bool:
    if isinstance(layer, LinearBase):
        return not layer.prefix and len(getattr(layer, "output_partition_sizes", ())) == 1
    return type(layer) is nn.Linear


def _named(layer: Any, name: str, configuration: Any) -> nn.Module:
    is_torch = isinstance(layer, nn.Linear)
    return ReplicatedLinear(
        layer.in_features if is_torch else layer.input_size,
        layer.out_features if is_torch else layer.output_size,
        bias=layer.bias is not None,
        skip_bias_add=not is_torch and layer.skip_bias_add,
        params_dtype=layer.weight.dtype,
        quant_config=configuration,
        prefix=name,
        return_bias=not is_torch and layer.return_bias,
    )
