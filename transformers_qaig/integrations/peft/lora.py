"""LoRA, rsLoRA and DoRA beside a packed layer."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.config import LoraConfig
from peft.tuners.lora.layer import Embedding, Linear, LoraVariant
from peft.tuners.lora.variants import ALoraLinearVariant
from torch import nn

from ...nn.linear import QAIGLinear
from ...nn.packed_module import PackedModule
from .dora import PackedDoraVariant

INITS_WITHOUT_WEIGHT = (True, False, "gaussian", "eva", "orthogonal")
REMEDY = "Leave it out, or train on `model.dequantize()`."
MERGE = "An adapter cannot be merged into a packed weight. Call `dequantize()` on the model first, then merge."


class QAIGLoraLinear(Linear):
    """Low-rank adapters beside a packed layer.

    PEFT's own forward pass computes them. What changes the weight is refused, until `model.dequantize()` has made the
    layer below an `nn.Linear`.
    """

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, QAIGLinear)
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant] | None]:
        """The variants of LoRA that need no dense weight."""
        return {(): None, ("use_dora",): PackedDoraVariant, ("alora_invocation_tokens",): ALoraLinearVariant}

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        """Returns the variant that the configuration asks for.

        Args:
            config: of the adapter.
            kwargs: as PEFT passes them.

        Raises:
            ValueError: the variant or the initialization needs a dense weight.
        """
        _check_initialization(config)
        try:
            return super().resolve_lora_variant(config=config, **kwargs)
        except ValueError as error:
            raise ValueError(f"This kind of LoRA is not supported on packed layers: {error}. {REMEDY}") from error

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merges into a dense layer.

        Raises:
            NotImplementedError: the layer is packed.
        """
        check_dense(self.get_base_layer())
        super().merge(safe_merge, adapter_names)


class QAIGLoraEmbedding(Embedding):
    """Low-rank adapters beside packed embeddings."""

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        """Returns None, for plain LoRA.

        Raises:
            ValueError: the configuration asks for another kind.
        """
        _check_initialization(config)
        if config.use_dora:
            raise ValueError(f"`use_dora=True` is not supported on packed embeddings. {REMEDY}")
        return super().resolve_lora_variant(config=config, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merges into dense embeddings.

        Raises:
            NotImplementedError: the embeddings are packed.
        """
        check_dense(self.get_base_layer())
        super().merge(safe_merge, adapter_names)


def check_dense(base: nn.Module) -> None:
    """Raises `NotImplementedError` where an adapter shall be merged into a packed layer."""
    if isinstance(base, PackedModule):
        raise NotImplementedError(MERGE)


def _check_initialization(config: LoraConfig) -> None:
    if config.init_lora_weights not in INITS_WITHOUT_WEIGHT:
        raise ValueError(
            f"`init_lora_weights={config.init_lora_weights!r}` is unknown, or reads the weight, which is packed. "
            f"{REMEDY}"
        )
