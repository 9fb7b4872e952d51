"""vLLM's methods for packed layers: linears, embeddings and heads."""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

from ..engines.methods import PackedLinear, PackedRows


class QAIGLinearMethod(PackedLinear, LinearMethodBase):  # type: ignore[misc]
    """Runs a linear of vLLM, fused or not, whose shards may have schemes of their own."""


class QAIGEmbeddingMethod(PackedRows, LinearMethodBase):  # type: ignore[misc]
    """Runs packed embeddings or a packed head; tied ones are one layer."""

    def is_head(self, layer: nn.Module) -> bool:
        """Returns whether a layer is a head of its own."""
        return isinstance(layer, ParallelLMHead)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """Lets the embeddings be the head."""
        return tied_head(layer, embed_tokens)


class DenseHeadMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """Runs a head that is not in the plan, and may be tied to embeddings that are."""

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """Lets packed embeddings be the head, or shares a dense weight."""
        if isinstance(getattr(embed_tokens, "quant_method", None), QAIGEmbeddingMethod):
            return tied_head(layer, embed_tokens)
        return super().tie_weights(layer, embed_tokens)


def tied_head(head: nn.Module, embeddings: Any) -> nn.Module:
    """Returns the layer that is both embeddings and head.

    Raises:
        ValueError: one of them is packed, the other is not.
    """
    method = embeddings.quant_method
    if not isinstance(method, QAIGEmbeddingMethod):
        raise ValueError(
            f"{getattr(head, 'prefix', 'the head')} is packed and tied to embeddings that are not: the checkpoint is "
            "damaged, or vLLM gives its embeddings no name."
        )
    method.is_tied = True
    if not hasattr(embeddings, "bias"):  # some models read that of their head
        embeddings.register_parameter("bias", getattr(head, "bias", None))
    return embeddings
