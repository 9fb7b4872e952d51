"""Adds packed layers to PEFT's LoRA, whose list of layer types a package cannot extend: once, when it is imported.

Once PEFT is imported, this module is ([`transformers_qaig.integrations.when_imported`]).
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from peft.tuners import tuners_utils
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.config import LoraConfig
from peft.tuners.lora.layer import Linear, LoraVariant
from peft.tuners.lora.variants import ALoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from ..nn.linear import QAIGLinear
from ..nn.packed_module import PackedModule

INITS_WITHOUT_WEIGHT = (True, False, "gaussian", "eva")
REMEDY = "Leave it out, or train on `model.dequantize()`."


class QAIGLoraLinear(Linear):
    """Low-rank adapters beside a packed layer.

    PEFT's own forward pass computes them. Whatever reads or changes the weight is refused.
    """

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, QAIGLinear)
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant] | None]:
        """The variants of LoRA that do not read the weight."""
        return {(): None, ("alora_invocation_tokens",): ALoraLinearVariant}

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        """Returns the variant that the configuration asks for.

        Args:
            config: of the adapter.
            kwargs: as PEFT passes them.

        Raises:
            ValueError: the variant or the initialization reads the weight.
        """
        if config.init_lora_weights not in INITS_WITHOUT_WEIGHT:
            raise ValueError(
                f"`init_lora_weights={config.init_lora_weights!r}` reads the weight, which is packed. {REMEDY}"
            )
        if config.use_dora:
            raise ValueError(f"`use_dora=True` reads the weight, which is packed. {REMEDY}")
        try:
            return super().resolve_lora_variant(config=config, **kwargs)
        except ValueError as error:
            raise ValueError(f"This kind of LoRA is not supported on packed layers: {error}. {REMEDY}") from error

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises `NotImplementedError`: an adapter cannot be merged into a packed weight."""
        raise NotImplementedError(
            "An adapter cannot be merged into a packed weight. Load it on `model.dequantize()` and merge it there."
        )


def support_packed_layers() -> None:
    """Makes PEFT put adapters on packed layers, by name and by `target_modules="all-linear"`."""
    make_default = lora_model.dispatch_default

    @functools.wraps(make_default)
    def dispatch_default(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(base, QAIGLinear) and kwargs.get("parameter_name") is None:
            return QAIGLoraLinear(target, adapter_name, config=config, **kwargs)
        return make_default(target, adapter_name, config=config, **kwargs)

    lora_model.dispatch_default = dispatch_default  # type: ignore[assignment]
    _include_packed_layers_in_all_linear()
    _refuse_to_train_packed_weights()


def _include_packed_layers_in_all_linear() -> None:
    all_linear = tuners_utils._maybe_include_all_linear_layers

    @functools.wraps(all_linear)
    def include_packed(peft_config: Any, model: nn.Module) -> Any:
        wanted = getattr(peft_config, "target_modules", None)
        peft_config = all_linear(peft_config, model)
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            peft_config.target_modules = peft_config.target_modules | packed_names(model)
        return peft_config

    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "peft"]:
        if vars(module).get("_maybe_include_all_linear_layers") is all_linear:
            module._maybe_include_all_linear_layers = include_packed  # type: ignore[attr-defined]


def _refuse_to_train_packed_weights() -> None:
    check = ModulesToSaveWrapper.check_module

    @functools.wraps(check)
    def check_module(self: ModulesToSaveWrapper) -> None:
        check(self)
        if isinstance(self.original_module, PackedModule):
            raise ValueError(
                "`modules_to_save` names a packed layer, whose weight cannot be trained. Put an adapter on it instead, "
                "by `target_modules`, or quantize with this layer left out."
            )

    ModulesToSaveWrapper.check_module = check_module  # type: ignore[assignment, method-assign]


def packed_names(model: nn.Module) -> set[str]:
    """Lists the packed linears that "all-linear" means: not the output head, and none that has an adapter already."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, QAIGLinear) and module is not head and not name.startswith(adapted)
    }


support_packed_layers()
