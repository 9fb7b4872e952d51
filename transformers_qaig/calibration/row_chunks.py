"""A station in the parts that are quantized one after the other: a block whole, a single linear in slices of rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.block_outputs import OutputError
from ..execution.block_outputs import install as install_block
from ..loading.tied_embeddings import replace
from ..nn.linear import QAIGLinear
from ..plan.coverage import Plan
from ..report.summary import BlockSummary
from .targets import Target

ROWS_PER_CHUNK = 4096
"""Rows of a linear, or of embeddings, that are treated at once: a head's logits for every token would fill any memory.
A multiple of 32, so that every slice's zero points fill whole words."""
ALL_REAL = torch.ones(0, 0, dtype=torch.bool)
"""A mask of no sequence's shape: where the tokens are an image's, all of them are real."""


@dataclass
class Part:
    """
    Attributes:
        path: of the station; with the first row's number if it is a slice.
        block: a block, a slice of a linear, or embeddings; in full precision.
        entries: its linears to pack; those of embeddings under "".
        result: what it becomes.
        summary, error: of it.
    """

    path: str
    block: nn.Module
    entries: Plan
    result: nn.Module = field(default_factory=nn.Identity)
    summary: BlockSummary = field(default_factory=lambda: BlockSummary(""))
    error: OutputError = field(default_factory=OutputError)


class LinearRows(nn.Module):
    """A block of one linear: some rows of the one in the model."""

    def __init__(self, linear: nn.Linear, start: int, stop: int):
        super().__init__()
        self.linear = nn.Linear(linear.in_features, stop - start, linear.bias is not None, device="meta")
        for name, parameter in linear.named_parameters():
            setattr(self.linear, name, nn.Parameter(parameter.data[start:stop], requires_grad=False))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.linear(*args, **kwargs)


def row_chunks_of(station: Target, plan: Plan) -> list[Part]:
    """
    The parts of a station, not quantized yet. Slices of one linear are judged one by one, but share one input: they are
    not offered the rotation that its entry may hold, which is taken out of the plan.
    """
    path, module = station.path, station.module
    if isinstance(module, nn.Linear):
        plan[path].pop("rotation", None)
        rows = module.out_features
        return [
            Part(
                f"{path}.{start}", LinearRows(module, start, min(start + ROWS_PER_CHUNK, rows)), {"linear": plan[path]}
            )
            for start in range(0, rows, ROWS_PER_CHUNK)
        ]
    if isinstance(module, nn.Embedding):
        return [Part(path, module, {"": plan[path]})]
    entries = {name.removeprefix(f"{path}."): entry for name, entry in plan.items() if name.startswith(f"{path}.")}
    return [Part(path, module, entries)]


def together(outputs: Sequence[Any]) -> Any:
    """A station's output from its parts'."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=-1)


def merged(path: str, parts: list[Part]) -> BlockSummary:
    """A station's summary from its parts'."""
    if len(parts) == 1:
        parts[0].summary.path = path
        return parts[0].summary
    error = OutputError(sum(part.error.error for part in parts), sum(part.error.power for part in parts))
    summaries = [part.summary for part in parts]
    return BlockSummary(
        path,
        error.value,
        [f"{what}, rows from {part.path.rpartition('.')[2]}" for part in parts for what in part.summary.kept],
        [f"{what}, rows from {part.path.rpartition('.')[2]}" for part in parts for what in part.summary.undone],
        seconds=sum(summary.seconds for summary in summaries),
        resumed=all(summary.resumed for summary in summaries),
    )


def install(model: nn.Module, station: Target, parts: list[Part]) -> None:
    """Put what the parts became into the model, in the place of the station."""
    if isinstance(station.module, nn.Linear):
        linears = [part.result.get_submodule("linear") for part in parts]
        replace(model, station.module, concat_rows(linears).cpu())  # type: ignore[arg-type]
    elif isinstance(station.module, nn.Embedding):
        replace(model, station.module, parts[0].result.cpu())
    else:
        install_block(station.module, parts[0].result)


def concat_rows(parts: list[QAIGLinear]) -> QAIGLinear:
    """The layer whose rows are those of `parts`, in order; all but the last hold a multiple of 32 rows."""
    for part in parts:
        part.unprepare()
    layer, rows = copy.copy(parts[0]), sum(part.out_features for part in parts)
    layer._parameters = {}
    layer.out_features = rows
    for name, parameter in parts[0]._parameters.items():
        if parameter is None:
            layer.register_parameter(name, None)
            continue
        if name == "weight_shape":
            whole = torch.tensor([rows, layer.in_features], device=parameter.device)
        else:
            whole = torch.cat([part.get_parameter(name) for part in parts])
        layer.register_parameter(name, nn.Parameter(whole, requires_grad=False))
    return layer
