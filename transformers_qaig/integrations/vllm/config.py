"""vLLM's configuration of the method `qaig`: which layer is run how. Importing this registers it."""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.config import get_current_vllm_config, get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import WeightsMapper
from vllm.platforms import current_platform

from ...config import QUANT_METHOD
from ...formats.scheme import Plan
from ...utils.logging import get_logger
from ..engines.methods import refuse_permuted_zeros, refuse_reshaped
from ..engines.permuted_rows import permutes_rows, reshapes_packed
from ..engines.saved_records import check_records
from ..engines.served_config import ServedConfig
from ..engines.served_plan import ServedPlan
from .embeddings import ask_configuration
from .experts import QAIGExpertsMethod
from .experts_names import PATTERN, REPLACEMENT
from .layers import DenseHeadMethod, QAIGEmbeddingMethod, QAIGLinearMethod
from .plain_linears import replace_in_models

_logger = get_logger(__name__)
_TOWER = r"(^|\.)vision_tower\.(?=(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)"


def _model_type() -> str:
    model = get_current_vllm_config().model_config
    return "" if model is None else str(getattr(model.hf_text_config, "model_type", ""))


def _warn_of_rotation() -> None:
    """Warns of vLLM 0.32's rotation on the CPU, which is wrong for latent attention, in full precision, too."""
    engine = get_current_vllm_config_or_none()
    if engine is None or engine.model_config is None or not engine.model_config.use_mla:
        return
    if current_platform.is_cpu() and not {"-rotary_embedding", "none"} & set(engine.compilation_config.custom_ops):
        _logger.warning(
            "vLLM's rotation on the CPU leaves most rows of a latent query as they are, and the model answers wrongly. "
            """Add `--compilation-config '{"custom_ops": ["-rotary_embedding"]}'`."""
        )


def _hook(kind: type[QuantizationConfig]) -> None:
    ask_configuration(kind)
    replace_in_models(kind)


@register_quantization_config(QUANT_METHOD)
class QAIGServedConfig(ServedConfig, QuantizationConfig):  # type: ignore[misc]
    """Reads `quantization_config` of a model's config.json as it is.

    Args:
        plan: how every packed weight is stored.
    """

    def __init__(self, plan: ServedPlan):
        super().__init__()
        self.plan = plan
        self.saved_plan: Plan = {}
        self._has_warned = False
        _hook(type(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepares a process of the engine, which is given the configuration of the one that read it."""
        self.__dict__ |= state
        _hook(type(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QAIGServedConfig:
        """Makes it from the mapping in config.json.

        Raises:
            ValueError: the mapping is damaged, or holds what vLLM cannot run.
        """
        plan = cls.read_plan(config)
        made = cls(ServedPlan(plan))
        made.saved_plan = plan
        return made

    def maybe_update_config(self, model_name: str, *_: Any, **__: Any) -> None:
        """Compares the plan with the files of a folder; vLLM calls this once it has read config.json.

        Raises:
            ValueError: they do not belong together.
        """
        check_records(self.saved_plan, model_name)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Translates the plan to vLLM's names."""
        self.plan.rename(hf_to_vllm_mapper.map_name)

    def is_packed(self, prefix: str) -> bool:
        """Returns whether the file holds a linear packed, or part of one that is fused."""
        return self.plan.linear(prefix, self.packed_modules_mapping) is not None

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """Returns how a layer is run; None for one that has nothing to do with this method."""
        if isinstance(layer, LinearBase):
            schemes = self.plan.linear(prefix, self.packed_modules_mapping)
            if schemes is None:
                return UnquantizedLinearMethod()
            if reshapes_packed(_model_type(), prefix):
                refuse_reshaped(prefix)
            if permutes_rows(_model_type(), prefix):
                refuse_permuted_zeros(prefix, schemes)
            return QAIGLinearMethod(prefix, schemes)
        if isinstance(layer, RoutedExperts):
            experts = self.plan.experts(prefix, layer.global_num_experts)
            return QAIGExpertsMethod(prefix, layer.moe_config, experts) if experts else None
        if isinstance(layer, VocabParallelEmbedding):
            is_head = isinstance(layer, ParallelLMHead)
            scheme = self.plan.rows(prefix, is_head)
            if scheme is not None:
                return QAIGEmbeddingMethod(prefix or ("lm_head" if is_head else "embed_tokens"), [scheme])
            return DenseHeadMethod() if is_head else None
        return None

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """Renames tensors of experts, and adds the level of a tower that this file's names lack. All layers exist."""
        self.plan.check_blocks()
        if not self._has_warned:
            self._has_warned = True
            _warn_of_rotation()
            if self.plan.unused:
                _logger.warning(
                    "vLLM has no layer of its own for %d packed weights, such as %s. If it runs them otherwise, "
                    "loading fails with their names.", len(self.plan.unused), self.plan.unused[0],
                )  # fmt: skip
        import regex

        names = {regex.compile(PATTERN): REPLACEMENT}
        if self.plan.has_tower_level:
            names[regex.compile(_TOWER)] = r"\1vision_tower.vision_model."
        return WeightsMapper(orig_to_new_regex=names)
