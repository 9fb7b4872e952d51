"""Rounds embeddings: every row to nearest on its own grid, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..config.recipes import Recipe
from ..execution.row_chunks import ROWS_PER_CHUNK, concat_rows
from ..formats.scheme import WeightScheme
from ..nn.embedding import QAIGEmbedding
from ..rounding.clipping import search_clipping
from ..rounding.quant_grid import QuantizedWeight, grid_arguments, minmax_grid
from .block.decisions import pack_linear


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
