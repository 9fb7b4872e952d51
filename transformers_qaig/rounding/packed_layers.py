"""Packed layers of rounded weights: linears, rows of linears joined, and embeddings, some rows at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..config.recipes import Recipe
from ..formats.scheme import WeightScheme
from ..nn.embedding import QAIGEmbedding
from ..nn.linear import QAIGLinear
from .clipping import search_clipping
from .quant_grid import QuantizedWeight, grid_arguments, minmax_grid

ROWS_PER_CHUNK = 4096
"""Rows of a linear, or of embeddings, that are quantized at once: a head's logits for every token would fill memory.
A multiple of 32, so that every chunk's zero points fill whole words."""


def pack_linear(weight: QuantizedWeight, bias: Tensor | None, scheme: WeightScheme, dtype: torch.dtype) -> QAIGLinear:
    """Makes the packed layer of a quantized weight `[N, K]`.

    Args:
        weight: its codes and their grid.
        bias: `[N]`, or None.
        scheme: how it is stored, and what happens to the layer's input.
        dtype: of the stored scales.
    """
    zero_point = None if scheme.sym else weight.grid.zero_point.to(torch.uint8)
    return QAIGLinear.from_codes(
        weight.codes,
        weight.grid.scale.to(dtype),
        zero_point,
        bias,
        bits=scheme.bits,
        group_size=scheme.group_size,
        activation_bits=scheme.activation_bits,
        rotation=scheme.rotation,
    )


def concat_rows(layers: Sequence[QAIGLinear]) -> QAIGLinear:
    """Joins the rows of `layers`, in order; all but the last hold a multiple of 32 rows."""
    for layer in layers:
        layer.to_checkpoint_layout()
    whole, rows = copy.copy(layers[0]), sum(layer.out_features for layer in layers)
    whole._parameters = {}
    whole.out_features = rows
    for name, parameter in layers[0]._parameters.items():
        if parameter is None:
            whole.register_parameter(name, None)
            continue
        if name == "weight_shape":
            values = torch.tensor([rows, whole.in_features], device=parameter.device)
        else:
            values = torch.cat([layer.get_parameter(name) for layer in layers])
        whole.register_parameter(name, nn.Parameter(values, requires_grad=False))
    return whole


@torch.no_grad()
def pack_embedding(embeddings: nn.Embedding, scheme: WeightScheme, recipe: Recipe) -> QAIGEmbedding:
    """Packs embeddings.

    With a recipe that clips, ranges are clipped where that lowers the row's own squared error. How often a text uses a
    row is not known, so rows are not weighted.
    """
    dtype, chunks = embeddings.weight.dtype, []
    for _, rounded in _rounded(embeddings, scheme, recipe):
        rounded.check_range(dtype, "The weight of the embeddings")
        chunks.append(pack_linear(rounded, None, scheme, dtype))
    return QAIGEmbedding.like(embeddings, scheme).use_tensors_of(concat_rows(chunks))


@torch.no_grad()
def embedding_errors(embeddings: nn.Embedding, scheme: WeightScheme, recipe: Recipe) -> Tensor:
    """Computes what packing would add to the weight: `[N, K]` in its dtype, on the CPU."""
    dtype = embeddings.weight.dtype
    found = [(rounded.values - weight).to("cpu", dtype) for weight, rounded in _rounded(embeddings, scheme, recipe)]
    return torch.cat(found)


def _rounded(
    embeddings: nn.Embedding, scheme: WeightScheme, recipe: Recipe
) -> Iterator[tuple[Tensor, QuantizedWeight]]:
    """Yields some rows in fp32, and what they are rounded to."""
    for start in range(0, embeddings.num_embeddings, ROWS_PER_CHUNK):
        weight = embeddings.weight[start : start + ROWS_PER_CHUNK].float()
        arguments = grid_arguments(scheme, embeddings.weight.dtype, recipe.include_zero)
        if recipe.clipping:
            groups = scheme.num_groups(weight.shape[1])
            moments = torch.eye(weight.shape[1] // groups, device=weight.device).expand(groups, -1, -1)
            clipping = search_clipping(weight, moments, layer="the embeddings", **arguments)
            arguments.update(shrink=clipping.shrink, gain=clipping.gain)
        grid = minmax_grid(weight, **arguments)
        yield weight, QuantizedWeight(grid, grid.encode(weight))
