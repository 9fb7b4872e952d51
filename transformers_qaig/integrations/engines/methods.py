"""Runs packed layers in an engine: linears, embeddings and heads. Nothing here imports an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...formats.scheme import WeightScheme
from ...nn.embedding import tie
from ...nn.linear import QAIGLinear
from .loaded_shards import LoadedShards
from .served_plan import ServedPlan, block_of
from .shards import make_embedding, make_linears


class PackedLinear:
    """Runs a linear of an engine, fused or not, whose shards may have schemes of their own.

    Args:
        name: of the layer.
        schemes: of each shard; None for one that is not packed.
    """

    def __init__(self, name: str, schemes: Sequence[WeightScheme | None]):
        self.loaded = LoadedShards(name, schemes)

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
        """Gives the layer its parameters, as the engine asks for it."""
        refuse_sharding(self.loaded.name, layer)
        whole = len(self.loaded.schemes) == 1
        sizes = [sum(output_partition_sizes)] if whole else output_partition_sizes
        if len(sizes) != len(self.loaded.schemes) and not len(self.loaded.schemes) == 2 < len(sizes):
            raise ValueError(
                f"{self.loaded.name} has {len(sizes)} parts in this engine and {len(self.loaded.schemes)} in the plan: "
                "this model's layers are fused in a way that is not supported."
            )
        self.in_features, self.out_features, self.dtype = input_size_per_partition, sizes, params_dtype
        self.loaded.parts = len(sizes)
        self.loaded.register(layer, params_dtype)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Makes the packed modules, in the layout of the device's kernels."""
        bias = None if getattr(layer, "skip_bias_add", False) else getattr(layer, "bias", None)
        sizes = self.loaded.sizes(self.out_features)
        layer.packed = make_linears(self.loaded, self.in_features, sizes, bias, _device(layer), self.dtype)
        self.loaded.release(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Computes the layer; its modules hold the bias."""
        outputs = [module(x) for module in layer.packed]  # type: ignore[union-attr]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


class PackedRows(PackedLinear):
    """Runs packed embeddings or a packed head; tied ones are one layer."""

    is_tied = False

    def is_head(self, layer: nn.Module) -> bool:
        """Returns whether a layer is a head of its own."""
        raise NotImplementedError

    def embedding(self, layer: nn.Module, ids: Tensor) -> Tensor:
        """Looks up rows."""
        return layer.rows(ids)  # type: ignore[operator]

    def process_weights_after_loading(self, layer: Any) -> None:
        """Makes the packed rows, the packed head, or both of the same tensors."""
        loaded, device = self.loaded, _device(layer)
        count = layer.org_vocab_size  # a head may be padded; the file is not
        if self.is_head(layer):
            layer.packed = make_linears(loaded, self.in_features, [count], None, device, self.dtype)
        else:
            layer.rows = make_embedding(loaded, count, self.in_features, device, self.dtype)
        if self.is_tied:
            self.add_head(layer)
        loaded.release(layer)

    def add_head(self, layer: Any) -> None:
        """Makes the head of a layer's embeddings, which holds their tensors."""
        (scheme,) = self.loaded.schemes
        assert scheme is not None
        head = QAIGLinear.from_scheme(
            self.in_features, layer.org_vocab_size, scheme, dtype=layer.rows.weight_scale.dtype
        )
        tie(head, layer.rows)
        head.to_kernel_layout()
        layer.packed = nn.ModuleList([head])

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Computes logits. The engine passes the head's bias, which may be padded.

        Some models use their embeddings as a head without declaring it.
        """
        if not hasattr(layer, "packed"):
            self.add_head(layer)
        out = super().apply(layer, x)
        return out if bias is None else out + bias[: out.shape[-1]]


def refuse_sharding(name: str, layer: Any) -> None:
    """Raises `NotImplementedError` where an engine shards a layer."""
    size = getattr(layer, "tp_size", 1)
    if size > 1:
        raise NotImplementedError(
            f"{name}: packed layers are not sharded yet. Use `--tensor-parallel-size 1` instead of {size}; "
            "`--data-parallel-size` serves on several devices."
        )


def refuse_dense(model: nn.Module, plan: ServedPlan) -> None:
    """Checks that no head, no embeddings and no projector are dense in a model and packed in its file.

    Some engines leave such a layer without weights, and say nothing. Layers in blocks are checked by block.

    Args:
        model: of the engine, without weights.
        plan: that all its layers have asked.

    Raises:
        ValueError: naming such a layer.
    """
    unused = {_own_name(path): path for path in plan.unused if block_of(path) is None}
    for name, layer in model.named_modules():
        last = _own_name(name)
        is_dense = layer._parameters.get("weight") is not None
        if last in unused and is_dense and not isinstance(getattr(layer, "quant_method", None), PackedLinear):
            raise ValueError(
                f"This engine has no layer for the packed weight {unused[last]}, and a dense one called {name}. Serve "
                "it with Transformers, or quantize it with this layer left out."
            )


def _own_name(path: str) -> str:
    """Returns the last part of a path; two of them for a number in a sequence."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdecimal() else parts[-1:])


def refuse_permuted_zeros(name: str, schemes: Sequence[WeightScheme | None]) -> None:
    """Raises `NotImplementedError` for zero points where vLLM permutes rows of q and k, as it does for Llama 4.

    It permutes words and scales of a file. Zero points are packed over rows, and it leaves them as they are.
    """
    if any(scheme is not None and not scheme.sym for scheme in schemes[:2]):
        raise NotImplementedError(
            f"{name}: vLLM permutes the rows of q and k of this model, and not their zero points. "
            "Quantize it with `sym=True`, or serve it with Transformers."
        )


def refuse_reshaped(name: str) -> None:
    """Raises `NotImplementedError` for a packed linear whose tensors vLLM reshapes, as it does for Bloom."""
    raise NotImplementedError(
        f"{name}: vLLM reshapes the tensors of q, k and v of this model by heads, and packed ones have other shapes. "
        'Quantize it with `modules_to_not_convert=["query_key_value"]`, or serve it with Transformers.'
    )


def _device(layer: Any) -> torch.device:
    return layer.weight.device
