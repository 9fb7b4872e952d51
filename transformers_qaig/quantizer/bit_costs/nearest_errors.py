"""Rounding errors to nearest, computed when they are asked for: those of a large model would fill the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ...formats.scheme import Plan, WeightScheme
from ...rounding.quant_grid import grid_arguments, minmax_grid
from ...structure import ModelStructure

ROWS = 4096
"""Rows of a weight that are rounded at once: a head may have 150,000."""


class NearestErrors(Mapping[str, Tensor]):
    """What rounding to nearest adds to each weight of a plan: path → δ [N, K].

    In a block δ is computed from the copy of the weight that computes then, in its dtype and where it is. Outside of
    blocks it is computed once and kept, in the dtype of the checkpoint: few weights, and embeddings are looked up.
    Rotations are left out: they change the error of nearest rounding little.

    Args:
        model: in full precision.
        structure: of the model.
        plan: weight path → scheme.
    """

    def __init__(self, model: nn.Module, structure: ModelStructure, plan: Plan):
        self._model, self._plan = model, plan
        self._dtypes = {path: self._weight(path).dtype for path in plan}
        self._kept = {
            path: nearest_error(self._weight(path), scheme, self._dtypes[path]).to("cpu", self._dtypes[path])
            for path, scheme in plan.items()
            if not structure.is_in_block(path)
        }

    def __getitem__(self, path: str) -> Tensor:
        if path in self._kept:
            return self._kept[path]
        return nearest_error(self._weight(path), self._plan[path], self._dtypes[path])

    def __contains__(self, path: object) -> bool:
        return path in self._plan

    def __iter__(self) -> Iterator[str]:
        return iter(self._plan)

    def __len__(self) -> int:
        return len(self._plan)

    def _weight(self, path: str) -> Tensor:
        # Not `get_parameter`: while a block runs, its weights may be plain copies.
        weight: Tensor = self._model.get_submodule(path).weight  # type: ignore[assignment]
        return weight.detach()


@torch.no_grad()
def nearest_error(weight: Tensor, scheme: WeightScheme, dtype: torch.dtype) -> Tensor:
    """Returns what rounding to nearest adds to a weight, fp32 `[N, K]`, where the weight is.

    Args:
        weight: `[N, K]`.
        scheme: how it is stored; its rotation is not read.
        dtype: of the scales.
    """
    errors = []
    for rows in weight.split(ROWS):
        values = rows.float()
        grid = minmax_grid(values, **grid_arguments(scheme, dtype, False))
        errors.append(grid.quantize(values) - values)
    return torch.cat(errors)
