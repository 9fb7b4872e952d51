"""Defines `TokenWeights`, which weigh the tokens of a `SubBlock`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..equalization.fold import Group
from ..execution.group_inputs import GroupInputs
from ..formats.scheme import Plan
from ..nn.linear import get_linear
from ..rounding.quant_grid import grid_arguments, minmax_grid
from ..utils.finite import is_finite
from .integrated_gradients import flatten_weights

BlockWeights = Mapping[nn.Module, Mapping[int, Tensor]]
"""Block of the model → sample → λ fp32 `[B, T]`, where they can be computed before anything is quantized."""


@dataclass(frozen=True)
class SubBlock:
    """The part of a block that a search runs: from the tensor that a group reads to where its outputs meet.

    Attributes:
        owner: the block in the model itself.
        block: the same in fp32, with the weights as they are so far; not changed.
        group: the linears.
        inputs: the samples at their entrance.
        schemes: linear's path in the block → how it will be stored.
        include_zero: whether grids are widened to hold zero.
        dtype: of stored scales.
        is_searched: whether a scale is searched for the group.
    """

    owner: nn.Module
    block: nn.Module
    group: Group
    inputs: Sequence[GroupInputs]
    schemes: Plan
    include_zero: bool
    dtype: torch.dtype
    is_searched: bool

    @property
    def activation_bits(self) -> int:
        """The bits that the linears' inputs are rounded to: 8, or 16 for no rounding."""
        return next(iter(self.schemes.values())).activation_bits

    @property
    def device(self) -> torch.device:
        """The device of the block."""
        return next(self.block.parameters()).device

    def weights(self) -> dict[str, Tensor]:
        """Returns fp32 `[N, K]` of every linear of the sub-block that will be packed."""
        prefix = f"{self.group.module}." if self.group.module else ""
        inside = [name for name in self.schemes if f"{name}.".startswith(prefix)]
        return {name: get_linear(self.block, name).weight.float() for name in inside}

    def rounded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rounds the weights to nearest, each on its own grid."""
        return {name: self._rounded(name, weight) for name, weight in weights.items()}

    def _rounded(self, name: str, weight: Tensor) -> Tensor:
        scheme = self.schemes[name]
        grid = minmax_grid(weight, **grid_arguments(scheme, self.dtype, self.include_zero))
        return grid.quantize(weight)


class TokenWeights(Protocol):
    """Weighs tokens. One object serves a whole run, sub-block after sub-block in execution order."""

    sees_earlier_rounding: bool
    """Whether earlier groups of the quantized block are rounded when this group's tokens are weighed."""
    counts_padding: bool
    """Whether the search for a scale counts padding, too."""

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        """Computes λ fp32 `[B, T]` on the CPU for each of the sub-block's inputs; zero at padding."""
        ...

    def state(self) -> dict[str, int]:
        """Returns what the next weights depend on, beside their sub-block: kept with a finished block."""
        ...

    def restore(self, state: Mapping[str, int]) -> None:
        """Continues as after the block that `state` was kept with."""
        ...


class Stateless:
    """Parts of `TokenWeights` that most kinds share: weights that depend on nothing but their sub-block."""

    sees_earlier_rounding = True
    counts_padding = False

    def state(self) -> dict[str, int]:
        """Returns an empty state."""
        return {}

    def restore(self, state: Mapping[str, int]) -> None:
        """Does nothing: there is no state."""


class Flattened:
    """Token weights flattened for a second moment: see [`flatten_weights`]."""

    def __init__(self, inner: TokenWeights):
        self.inner = inner
        self.sees_earlier_rounding, self.counts_padding = inner.sees_earlier_rounding, inner.counts_padding

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        """Computes the inner weights and flattens them."""
        # What is not finite stays so, for the caller to find.
        return [flatten_weights(weights) if is_finite(weights) else weights for weights in self.inner.weigh(sub_block)]

    def state(self) -> dict[str, int]:
        """Returns the state of the inner weights."""
        return self.inner.state()

    def restore(self, state: Mapping[str, int]) -> None:
        """Restores the inner weights."""
        self.inner.restore(state)
