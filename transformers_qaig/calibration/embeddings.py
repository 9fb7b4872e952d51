"""Quantizes embeddings from their values alone; no calibration data is needed."""

from __future__ import annotations

import torch
from torch import nn

from ..nn.embedding import QAIGEmbedding
from ..recipes import Recipe
from ..rounding.clipping import search_clipping
from ..rounding.quant_grid import QuantizedWeight, grid_arguments, minmax_grid
from ..scheme import WeightScheme
from .decisions import pack_linear
from .row_chunks import ROWS_PER_CHUNK, concat_rows


@torch.no_grad()
def quantize_embedding(embeddings: nn.Embedding, scheme: WeightScheme, recipe: Recipe) -> QAIGEmbedding:
    """Packs embeddings: every row is rounded to nearest on its own grid.

    With a recipe that clips, ranges are clipped where that lowers the row's own squared error. How often a text uses a
    row is not known, so rows are not weighted.
    """
    dtype, chunks = embeddings.weight.dtype, []
    for start in range(0, embeddings.num_embeddings, ROWS_PER_CHUNK):
        weight = embeddings.weight[start : start + ROWS_PER_CHUNK].float()
        arguments = grid_arguments(scheme, dtype, recipe.include_zero)
        if recipe.clipping:
            groups = scheme.num_groups(weight.shape[1])
            moments = torch.eye(weight.shape[1] // groups, device=weight.device).expand(groups, -1, -1)
            clipping = search_clipping(weight, moments, layer="the embeddings", **arguments)
            arguments.update(shrink=clipping.shrink, gain=clipping.gain)
        grid = minmax_grid(weight, **arguments)
        rounded = QuantizedWeight(grid, grid.encode(weight))
        rounded.check_range(dtype, "The table of the embeddings")
        chunks.append(pack_linear(rounded, None, scheme, dtype))
    return QAIGEmbedding.like(embeddings, scheme).adopt(concat_rows(chunks))
