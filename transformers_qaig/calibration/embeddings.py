"""Embeddings, quantized by what is known of them: their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..nn.embedding import QAIGEmbedding
from ..nn.linear import QAIGLinear
from ..recipes import Recipe
from ..rounding.clipping import search_clipping
from ..rounding.quant_grid import QuantizedWeight, minmax_grid
from .row_chunks import ROWS_PER_CHUNK, concat_rows


@torch.no_grad()
def quantize_embedding(table: nn.Embedding, entry: Mapping[str, Any], recipe: Recipe) -> QAIGEmbedding:
    """
    The packed table: every row rounded to nearest on its own grid. With a recipe that clips, ranges are clipped where
    that lowers the row's own squared error: which rows a text will ask for, and what becomes of them, is not known.
    """
    dtype, parts = table.weight.dtype, []
    for start in range(0, table.num_embeddings, ROWS_PER_CHUNK):
        weight = table.weight[start : start + ROWS_PER_CHUNK].float()
        grid_of: dict[str, Any] = {**entry, "storage_dtype": dtype, "include_zero": recipe.include_zero}
        if recipe.clipping:
            size = weight.shape[1] if entry["group_size"] == -1 else entry["group_size"]
            moments = torch.eye(size, device=weight.device).expand(weight.shape[1] // size, -1, -1)
            clipping = search_clipping(weight, moments, layer="the embeddings", **grid_of)
            grid_of.update(shrink=clipping.shrink, gain=clipping.gain)
        grid = minmax_grid(weight, **grid_of)
        zero = None if grid.sym else grid.zero.to(torch.uint8)
        codes, scale = grid.encode(weight), grid.scale.to(dtype)
        QuantizedWeight(grid, codes).check_range(dtype, "The table of the embeddings")
        parts.append(QAIGLinear.from_codes(codes, scale, zero, bits=entry["bits"], group_size=entry["group_size"]))
    return QAIGEmbedding.like(table, **entry).adopt(concat_rows(parts))
