"""SGLang's configuration of the method `qaig`: which layer is run how."""

from __future__ import annotations

from typing import Any

from sglang.srt.arg_groups.choices import QUANTIZATION_CHOICES
from sglang.srt.layers import quantization
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from torch import nn

from ...config import QUANT_METHOD
from ...nn.experts_layout import split_path
from ...utils.quote import quote
from ..engines.permuted_rows import is_changed_by_sglang
from ..engines.served_config import ServedConfig
from ..engines.served_plan import ServedPlan
from .layers import QAIGEmbeddingMethod, QAIGLinearMethod

_ADDED_BY_SGLANG = ("packed_modules_mapping", "hf_config")


def register() -> None:
    """Adds the method to SGLang's tables. SGLang has no function for that."""
    for table in (quantization.QUANTIZATION_METHODS, quantization.CPU_QUANTIZATION_METHODS):
        table[QUANT_METHOD] = QAIGServedConfig
    if QUANT_METHOD not in QUANTIZATION_CHOICES:
        QUANTIZATION_CHOICES.append(QUANT_METHOD)


class QAIGServedConfig(ServedConfig, QuantizationConfig):  # type: ignore[misc]
    """Reads `quantization_config` of a model's config.json as it is.

    Args:
        plan: how every packed weight is stored.
        fused: last part of a fused layer's name → those of its shards, as the model's class says.
        is_tied: whether the model's head is its embeddings.
        model_type: of the model's config.
    """

    def __init__(self, plan: ServedPlan, fused: dict[str, list[str]], is_tied: bool = False, model_type: str = ""):
        super().__init__()
        self.plan, self.packed_modules_mapping, self.is_tied, self.model_type = plan, fused, is_tied, model_type

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QAIGServedConfig:
        """Makes it from the mapping in config.json, to which SGLang has added two keys.

        Raises:
            ValueError: the mapping is damaged.
            NotImplementedError: it packs experts.
        """
        own = {key: value for key, value in config.items() if key not in _ADDED_BY_SGLANG}
        plan = cls.read_plan(own)
        experts = [path for path in plan if split_path(path) is not None]
        if experts:
            raise NotImplementedError(
                f"packed experts, such as {quote(experts[0])}, are not served by SGLang yet. Serve this model with "
                "vLLM or Transformers, or quantize it with the experts left out."
            )
        model = config.get("hf_config")
        is_tied = model is not None and bool(getattr(model.get_text_config(), "tie_word_embeddings", False))
        fused = dict(config.get("packed_modules_mapping") or {})
        return cls(ServedPlan(plan), fused, is_tied, str(getattr(model, "model_type", "")))

    def get_scaled_act_names(self) -> list[str]:
        """Returns no names: no activation is scaled."""
        return []

    def apply_weight_name_mapper(self, hf_to_sglang_mapper: Any) -> None:
        """Translates the plan to SGLang's names."""
        self.plan.rename(hf_to_sglang_mapper._map_name)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """Returns how a layer is run; None for one that has nothing to do with this method."""
        if isinstance(layer, LinearBase):
            schemes = self.plan.linear(prefix, self.packed_modules_mapping)
            if schemes is None:
                return UnquantizedLinearMethod()
            if any(schemes[:2]) and is_changed_by_sglang(self.model_type, prefix):
                raise NotImplementedError(
                    f"{prefix}: SGLang changes the weights of this layer as it loads them, and not packed ones. Serve "
                    "the model with vLLM or Transformers, or leave the layer out with `modules_to_not_convert`."
                )
            return QAIGLinearMethod(prefix, schemes, self.check_plan)
        if isinstance(layer, VocabParallelEmbedding):
            is_head = isinstance(layer, ParallelLMHead)
            scheme = self.plan.rows(prefix, is_head)
            name = prefix or ("lm_head" if is_head else "embed_tokens")
            if is_head and scheme is None and self.is_tied and self.plan.rows("") is not None:
                raise NotImplementedError(
                    f"{name} is tied to packed embeddings, and SGLang makes a layer of its own for it in this model. "
                    "Quantize the model without `embedding_bits`, or serve it with vLLM or Transformers."
                )
            return None if scheme is None else QAIGEmbeddingMethod(name, scheme)
        return None

    def check_plan(self) -> None:
        """Raises an error if no layer has asked for a packed weight: SGLang's models skip tensors they do not know.

        Raises:
            NotImplementedError: there is such a weight.
        """
        if self.plan.unused:
            raise NotImplementedError(
                f"SGLang has no layer of its own for {len(self.plan.unused)} packed weights, such as "
                f"{quote(self.plan.unused[0])}. Pipelines of several stages are not supported; without them, quantize "
                "the model with this part left out, or serve it with vLLM or Transformers."
            )
