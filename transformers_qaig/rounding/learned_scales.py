"""Scales that are learned while the codes stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .learned import RANGE_BOUNDS, Keep, Learnable, adam_step, in_memory, straight_through
from .quant_grid import QuantizedWeight, storable


class LearnableFactors(Learnable):
    """Scales that can be learned, each by a factor. Calling it returns them as they are stored, fp32 [N, G].

    Args:
        scale: fp32 [N, G], to start from.
        storage_dtype: of the scale.
        keep: see [`Learnable`].
    """

    def __init__(self, scale: Tensor, storage_dtype: torch.dtype, keep: Keep = in_memory):
        super().__init__(keep)
        self._start, self._dtype = scale, storage_dtype
        self.factor = nn.Parameter(torch.ones_like(scale))
        self._adam = torch.optim.Adam([self.factor])

    def forward(self) -> Tensor:
        """Returns the learned scales, which `storage_dtype` holds exactly; gradients go through its rounding."""
        scale = self._start * self.factor.clamp(*RANGE_BOUNDS)
        return straight_through(lambda s: storable(s, self._dtype), scale)

    def result(self) -> Any:
        """Returns the learned scales, fp32 without a gradient."""
        return self().detach()

    def move(self, step: float) -> None:
        """Takes one step of Adam with learning rate `step`."""
        adam_step(self._adam, step)


class LearnableScales(LearnableFactors):
    """A rounded weight whose scales can be learned; its codes stay."""

    def __init__(self, rounding: QuantizedWeight, storage_dtype: torch.dtype, keep: Keep = in_memory):
        super().__init__(rounding.grid.scale, storage_dtype, keep)
        self._rounding = rounding

    def forward(self) -> Tensor:
        """Returns the weight with the learned scales, fp32 [N, K]."""
        codes, grid = self._rounding.codes, self._rounding.grid
        centred_codes = grid.grouped(codes.float()) - grid.zero_point.unsqueeze(-1)
        return (centred_codes * super().forward().unsqueeze(-1)).reshape(codes.shape)

    def result(self) -> QuantizedWeight:
        """Returns the same codes with the learned scales."""
        with torch.no_grad():
            grid = replace(self._rounding.grid, scale=super().forward())
        return replace(self._rounding, grid=grid)
