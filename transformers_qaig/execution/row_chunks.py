"""Divides a target into chunks that are quantized one by one: a block whole, a single linear some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..formats.scheme import Plan, inside
from ..rounding.packed_layers import ROWS_PER_CHUNK
from .targets import Target


class RowChunk(NamedTuple):
    """A part of a target that is quantized at once.

    Attributes:
        path: of the target; with the first row's number if it is some rows of a linear.
        module: a block, some rows of a linear, or embeddings; in full precision.
        schemes: its linears to pack; those of embeddings under "".
    """

    path: str
    module: nn.Module
    schemes: Plan

    @property
    def rows(self) -> str:
        """The rows of the linear, for the report."""
        return f"rows from {self.path.rpartition('.')[2]}"


class LinearRows(nn.Module):
    """A block of one linear, which has some rows of the linear in the model."""

    def __init__(self, linear: nn.Linear, start: int, stop: int):
        super().__init__()
        self.linear = nn.Linear(linear.in_features, stop - start, linear.bias is not None, device="meta")
        for name, parameter in linear.named_parameters():
            setattr(self.linear, name, nn.Parameter(parameter.data[start:stop], requires_grad=False))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Multiplies the input by these rows."""
        return self.linear(*args, **kwargs)


def row_chunks_of(target: Target, plan: Plan) -> list[RowChunk]:
    """Returns the chunks of a target.

    Those of one linear are validated one by one, but share one input. So they are not offered a rotation that the plan
    may have for it.
    """
    path, module = target.path, target.module
    if isinstance(module, nn.Linear):
        rows, scheme = module.out_features, replace(plan[path], rotation=None)
        return [
            RowChunk(
                f"{path}.{start}", LinearRows(module, start, min(start + ROWS_PER_CHUNK, rows)), {"linear": scheme}
            )
            for start in range(0, rows, ROWS_PER_CHUNK)
        ]
    if isinstance(module, nn.Embedding):
        return [RowChunk(path, module, {"": plan[path]})]
    return [RowChunk(path, module, inside(plan, path))]


def concat_outputs(outputs: Sequence[Any]) -> Any:
    """Joins the outputs of a target's chunks."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=-1)
