"""SGLang's methods for packed layers: linears, embeddings and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sglang.srt.layers.quantization.base_config import LinearMethodBase
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from torch import Tensor, nn

from ...formats.scheme import WeightScheme
from ..engines.methods import PackedLinear, PackedRows


class _Whole(PackedLinear):
    """Refuses layers that SGLang shards. Its layers do not say so, their sizes do."""

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Gives the layer its parameters, as SGLang asks for it.

        Raises:
            NotImplementedError: SGLang shards the layer.
        """
        shard, whole = (input_size_per_partition, sum(output_partition_sizes)), (input_size, output_size)
        if shard != whole:
            raise NotImplementedError(
                f"{self.loaded.name}: packed layers are not sharded yet, and SGLang asks for {shard} of "
                f"{whole} features. Use `--tp-size 1`; `--dp-size` serves on several devices."
            )
        super().create_weights(
            layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype
        )


class QAIGLinearMethod(_Whole, LinearMethodBase):  # type: ignore[misc]
    """Runs a linear of SGLang, fused or not, whose shards may have schemes of their own.

    Args:
        name: of the layer.
        schemes: of each shard; None for one that is not packed.
        check_plan: raises an error if no layer has asked for a packed weight. All layers exist when weights are loaded.
    """

    def __init__(self, name: str, schemes: Sequence[WeightScheme | None], check_plan: Callable[[], None]):
        super().__init__(name, schemes)
        self.check_plan = check_plan

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Makes the packed modules, once the plan was found to be used up."""
        self.check_plan()
        super().process_weights_after_loading(layer)


class QAIGEmbeddingMethod(_Whole, PackedRows, LinearMethodBase):  # type: ignore[misc]
    """Runs packed embeddings or a packed head. SGLang's models use their embeddings as the head where they are tied.

    Args:
        name: of the layer.
        scheme: how its rows are stored.
    """

    def __init__(self, name: str, scheme: WeightScheme):
        super().__init__(name, [scheme])
        # Some models load every tensor whose name begins as `embed_tokens.weight` into the head's `weight`, too.
        self.loaded.ignores_weight = True

    def is_head(self, layer: nn.Module) -> bool:
        """Returns whether a layer is a head of its own."""
        return isinstance(layer, ParallelLMHead)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Computes logits. Embeddings that are asked for logits are tied: the first call makes their head."""
        if not hasattr(layer, "packed"):
            self.add_head(layer)
        return super().apply(layer, x, bias)
