"""Extends PEFT, whose lists of layer types a package cannot add to: once, when it is imported."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import transformers.integrations.peft as transformers_peft
from peft.peft_model import PeftModel
from peft.tuners import tuners_utils
from peft.tuners.ia3.model import IA3Model
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.config import LoraConfig
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import other
from torch import nn
from transformers import PreTrainedModel

from ...nn.embedding import QAIGEmbedding
from ...nn.linear import QAIGLinear
from ...nn.packed_module import PackedModule
from .ia3 import QAIGIA3Linear
from .lora import QAIGLoraEmbedding, QAIGLoraLinear
from .targets import packed_names, warn_of_experts, warn_of_parameters
from .training import prepare_packed, save_dense_copies


def install() -> None:
    """Makes PEFT put adapters on packed layers, by name and by `target_modules="all-linear"`."""
    _add_lora()
    _add_ia3()
    _refuse_tokens()
    _refuse_prompts()
    _replace(tuners_utils._maybe_include_all_linear_layers, _include_packed)
    _replace(other.prepare_model_for_kbit_training, prepare_packed)
    save_dense_copies()
    transformers_peft.check_peft_version = _explained(transformers_peft.check_peft_version)


def _add_lora() -> None:
    make_default = lora_model.dispatch_default

    @functools.wraps(make_default)
    def dispatch_default(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if kwargs.get("parameter_name") is None:
            if isinstance(base, QAIGLinear):
                return QAIGLoraLinear(target, adapter_name, config=config, **kwargs)
            if isinstance(base, QAIGEmbedding):
                return QAIGLoraEmbedding(target, adapter_name, config=config, **kwargs)
        return make_default(target, adapter_name, config=config, **kwargs)

    lora_model.dispatch_default = dispatch_default  # type: ignore[assignment]


def _add_ia3() -> None:
    make = IA3Model._create_new_module

    @functools.wraps(make)
    def create(ia3_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        if isinstance(target, QAIGLinear):
            return QAIGIA3Linear(target, adapter_name, ia3_config, kwargs.get("is_feedforward", False))
        return make(ia3_config, adapter_name, target, **kwargs)

    IA3Model._create_new_module = staticmethod(create)  # type: ignore[method-assign]


def _refuse_tokens() -> None:
    """Refuses to train single tokens of packed embeddings, which the first forward pass could not read."""
    make = TrainableTokensLayer.__init__

    @functools.wraps(make)
    def create(self: TrainableTokensLayer, base_layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        if isinstance(base_layer, PackedModule):
            raise ValueError(
                "`trainable_token_indices` is not supported on packed embeddings. Train a dense copy by "
                "`modules_to_save=['embed_tokens']`, or train on `model.dequantize()`."
            )
        make(self, base_layer, *args, **kwargs)

    TrainableTokensLayer.__init__ = create  # type: ignore[method-assign]


def _refuse_prompts() -> None:
    """Refuses prompt tuning and its kin on packed embeddings, which PEFT seeks by the size of a parameter."""
    make = PeftModel._setup_prompt_encoder

    @functools.wraps(make)
    def create(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        model = self.base_model
        if isinstance(model, PreTrainedModel) and isinstance(model.get_input_embeddings(), PackedModule):
            raise ValueError(
                "Prompt tuning is not supported on packed embeddings. Quantize without `embedding_bits`, train an "
                "adapter such as LoRA, or train on `model.dequantize()`."
            )
        return make(self, *args, **kwargs)

    PeftModel._setup_prompt_encoder = create  # type: ignore[method-assign]


def _include_packed(all_linear: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(all_linear)
    def include_packed(peft_config: Any, model: nn.Module) -> Any:
        wanted = getattr(peft_config, "target_modules", None)
        peft_config = all_linear(peft_config, model)
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            peft_config.target_modules = peft_config.target_modules | packed_names(model)
            warn_of_experts(model)
        warn_of_parameters(model, getattr(peft_config, "target_parameters", None) or ())
        return peft_config

    return include_packed


def _replace(function: Callable[..., Any], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts a wrapped function in the place of PEFT's in every module that has imported it."""
    wrapped, name = wrap(function), function.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is function:
            setattr(module, name, wrapped)


def _explained(check: Callable[..., None]) -> Callable[..., None]:
    """Adds what to do to the error of `model.add_adapter`, if Transformers takes PEFT for too old."""

    @functools.wraps(check)
    def check_peft_version(*args: Any, **kwargs: Any) -> None:
        try:
            check(*args, **kwargs)
        except ValueError as error:
            raise ValueError(
                f"{error}. Until there is one, use `peft.get_peft_model(model, config)` in place of "
                "`model.add_adapter(config)`, and `peft.PeftModel.from_pretrained(model, folder)` in place of "
                "`model.load_adapter(folder)`: both work on packed layers with this version."
            ) from error

    return check_peft_version


install()
