"""What has been chosen for a block so far, and the block that follows from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..equalization.fold import Group, fold
from ..nn.linear import QAIGLinear, get_linear
from ..rounding.clipping import Clipping
from ..rounding.grid import Grid, Rounding, minmax_grid

Entries = Mapping[str, Mapping[str, Any]]
"""Path of a linear within its block → its entry of the plan."""


@dataclass(frozen=True)
class Choices:
    """
    A pure description: the block is built from it and the original weights, so undoing a choice is not making it.

    Attributes:
        entries: the plan of the block.
        include_zero: see [`minmax_grid`].
        scales: groups with the E to fold, in order.
        clippings: linear → how the range of its grid is clipped.
        roundings: linear → its codes, for the weight with every scale folded; to nearest where there are none.
        parameters: other parameters of the block, by path → their new values, fp32.
    """

    entries: Entries
    include_zero: bool = False
    scales: tuple[tuple[Group, Tensor], ...] = ()
    clippings: Mapping[str, Clipping] = field(default_factory=dict)
    roundings: Mapping[str, Rounding] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    def with_scale(self, group: Group, scale: Tensor) -> Choices:
        """Codes are for the folded weights: scales come first."""
        assert not self.roundings
        return replace(self, scales=(*self.scales, (group, scale)))

    def with_clippings(self, clippings: Mapping[str, Clipping]) -> Choices:
        return replace(self, clippings={**self.clippings, **clippings})

    def with_roundings(self, roundings: Mapping[str, Rounding]) -> Choices:
        return replace(self, roundings={**self.roundings, **roundings})

    def after(self, earlier: Choices) -> Choices:
        """These choices for the block with the earlier ones' scales folded, as choices for the block before that."""
        return replace(self, scales=(*earlier.scales, *self.scales))

    def grid_arguments(self, name: str, storage_dtype: torch.dtype) -> dict[str, Any]:
        return {**self.entries[name], "storage_dtype": storage_dtype, "include_zero": self.include_zero}

    def grid(self, name: str, weight: Tensor, storage_dtype: torch.dtype) -> Grid:
        """The grid of linear `name` for its (folded) fp32 weight."""
        arguments = self.grid_arguments(name, storage_dtype)
        if name in self.clippings:
            arguments.update(shrink=self.clippings[name].shrink, gain=self.clippings[name].gain)
        return minmax_grid(weight, **arguments)

    def rounding(self, name: str, weight: Tensor, storage_dtype: torch.dtype) -> Rounding:
        """How linear `name` is stored, given its (folded) fp32 weight."""
        if name in self.roundings:
            return self.roundings[name]
        grid = self.grid(name, weight, storage_dtype)
        return Rounding(grid, grid.encode(weight))


def folded(original: nn.Module, choices: Choices) -> nn.Module:
    """A copy of the fp32 block with every chosen scale folded: the same function, other weights."""
    block = copy.deepcopy(original)
    for group, scale in choices.scales:
        fold(block, group, scale)
    for name, value in choices.parameters.items():
        block.get_parameter(name).data.copy_(value)
    return block


def rounded(original: nn.Module, choices: Choices, names: list[str], dtype: torch.dtype) -> nn.Module:
    """The folded block in the model's `dtype` with the weights of `names` rounded; dense, for running."""
    block = folded(original, choices)
    for name in names:
        weight = get_linear(block, name).weight
        weight.data = choices.rounding(name, weight.data, dtype).values
    return block.to(dtype)


def packed(original: nn.Module, choices: Choices, dtype: torch.dtype) -> nn.Module:
    """The folded block in the model's `dtype` with a `QAIGLinear` for every entry of the plan."""
    block = folded(original, choices)
    for name, entry in choices.entries.items():
        linear = get_linear(block, name)
        rounding = choices.rounding(name, linear.weight.data, dtype)
        grid = rounding.grid
        block.set_submodule(
            name,
            QAIGLinear.from_codes(
                rounding.codes,
                grid.scale.to(dtype),
                None if grid.sym else grid.zero.to(torch.uint8),
                linear.bias,
                bits=entry["bits"],
                group_size=entry["group_size"],
            ),
        )
    return block.to(dtype)


def rounding_errors(original: nn.Module, choices: Choices, dtype: torch.dtype) -> dict[str, Tensor]:
    """
    What rounding adds to each linear's weight, seen from the block as it was: fp32 [N, K] by linear.

    A fold multiplies a weight by a matrix of factors, E of its input over E of its output, and leaves the block's
    function alone; so the rounding error of the folded weight, divided by those factors, is the change of the original
    weight with the same effect.
    """
    block, factors = folded(original, choices), copy.deepcopy(original)
    for parameter in factors.parameters():
        parameter.data.fill_(1.0)
    factors = folded(factors, replace(choices, parameters={}))
    errors = {}
    for name in choices.entries:
        weight = get_linear(block, name).weight.data
        errors[name] = (choices.rounding(name, weight, dtype).values - weight) / get_linear(factors, name).weight.data
    return errors
