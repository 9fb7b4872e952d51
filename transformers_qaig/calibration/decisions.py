"""What has been chosen for a block so far, and the block that follows from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..equalization.fold import Group, fold
from ..nn.hadamard import Rotation, rotate, rotate_back
from ..nn.linear import QAIGLinear, get_linear
from ..rounding.clipping import Clipping
from ..rounding.quant_grid import QuantGrid, QuantizedWeight, fake_quantize_tokens, minmax_grid

Schemes = Mapping[str, Mapping[str, Any]]
"""Path of a linear within its block → its entry of the plan."""


@dataclass(frozen=True)
class BlockDecisions:
    """
    A pure description: the block is built from it and the original weights, so undoing a choice is not making it.

    Attributes:
        entries: the plan of the block.
        include_zero: see [`minmax_grid`].
        scales: groups with the E to fold, in order.
        clippings: linear → how the range of its grid is clipped.
        roundings: linear → its codes, for the weight with every scale folded; to nearest where there are none.
        rotations: linear → what its input is rotated by; grid and codes are then for the rotated weight.
        activation_bits: what the inputs are rounded to: 8, or 16 for not at all.
        parameters: other parameters of the block, by path → their new values, fp32.
    """

    entries: Schemes
    include_zero: bool = False
    activation_bits: int = 16
    scales: tuple[tuple[Group, Tensor], ...] = ()
    clippings: Mapping[str, Clipping] = field(default_factory=dict)
    roundings: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    rotations: Mapping[str, Rotation] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    def with_scale(self, group: Group, scale: Tensor) -> BlockDecisions:
        """Codes are for the folded weights: scales come first."""
        assert not self.roundings
        return replace(self, scales=(*self.scales, (group, scale)))

    def with_clippings(self, clippings: Mapping[str, Clipping]) -> BlockDecisions:
        return replace(self, clippings={**self.clippings, **clippings})

    def with_roundings(self, roundings: Mapping[str, QuantizedWeight]) -> BlockDecisions:
        return replace(self, roundings={**self.roundings, **roundings})

    def with_rotations(self, rotations: Mapping[str, Rotation]) -> BlockDecisions:
        """What was chosen for their weights as they were is dropped."""
        return replace(
            self,
            rotations={**self.rotations, **rotations},
            clippings={name: value for name, value in self.clippings.items() if name not in rotations},
            roundings={name: value for name, value in self.roundings.items() if name not in rotations},
        )

    def after(self, earlier: BlockDecisions) -> BlockDecisions:
        """These choices for the block with the earlier ones' scales folded, as choices for the block before that."""
        return replace(self, scales=(*earlier.scales, *self.scales))

    def weight(self, folded_block: nn.Module, name: str) -> Tensor:
        """The fp32 weight of linear `name` that is rounded."""
        return self.rotated(get_linear(folded_block, name).weight.data, name)

    def rotated(self, x: Tensor, name: str) -> Tensor:
        """Inputs, or rows of the weight, of linear `name` in the basis in which it works."""
        return rotate(x, self.rotations[name]) if name in self.rotations else x

    def inputs(self, x: Tensor, name: str) -> Tensor:
        """What linear `name` multiplies where `x` arrives; gradients go straight through the rounding."""
        x = self.rotated(x, name)
        return fake_quantize_tokens(x) if self.activation_bits == 8 else x

    def grid_arguments(self, name: str, storage_dtype: torch.dtype) -> dict[str, Any]:
        entry = {key: value for key, value in self.entries[name].items() if key != "rotation"}
        return {**entry, "storage_dtype": storage_dtype, "include_zero": self.include_zero}

    def grid(self, name: str, weight: Tensor, storage_dtype: torch.dtype) -> QuantGrid:
        """The grid of linear `name` for its fp32 weight, folded and rotated."""
        arguments = self.grid_arguments(name, storage_dtype)
        if name in self.clippings:
            arguments.update(shrink=self.clippings[name].shrink, gain=self.clippings[name].gain)
        return minmax_grid(weight, **arguments)

    def rounding(self, name: str, weight: Tensor, storage_dtype: torch.dtype) -> QuantizedWeight:
        """How linear `name` is stored, given its fp32 weight, folded and rotated."""
        if name in self.roundings:
            return self.roundings[name]
        grid = self.grid(name, weight, storage_dtype)
        return QuantizedWeight(grid, grid.encode(weight))


def folded(original: nn.Module, choices: BlockDecisions) -> nn.Module:
    """A copy of the fp32 block with every chosen scale folded: the same function, other weights."""
    block = copy.deepcopy(original)
    for group, scale in choices.scales:
        fold(block, group, scale)
    for name, value in choices.parameters.items():
        block.get_parameter(name).data.copy_(value)
    return block


def folded_view(original: nn.Module, choices: BlockDecisions) -> nn.Module:
    """The folded block, not to be changed: the original itself where nothing is folded (in a 7 B model, 0.9 GB)."""
    return folded(original, choices) if choices.scales or choices.parameters else original


def rounded(original: nn.Module, choices: BlockDecisions, names: list[str], dtype: torch.dtype) -> nn.Module:
    """The folded fp32 block with linears `names` rounded, scales to `dtype`, inputs included; dense, for running."""
    block = folded(original, choices)
    for name in names:
        set_weight(block, choices, name, choices.rounding(name, choices.weight(block, name), dtype).values)
    return block


def cast_like(block: nn.Module, model: nn.Module) -> nn.Module:
    """Gives back `block`, each floating tensor in the dtype that it has in `model`: some keep fp32 parts (routers)."""
    dtypes = {name: tensor.dtype for name, tensor in chain(model.named_parameters(), model.named_buffers())}
    for name, tensor in chain(block.named_parameters(), block.named_buffers()):
        if name in dtypes and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes[name])
    return block


def set_weight(block: nn.Module, choices: BlockDecisions, name: str, weight: Tensor) -> None:
    """Give linear `name` a weight for its inputs as `choices` treat them, and that treatment."""
    linear = get_linear(block, name)
    if name in choices.rotations or choices.activation_bits == 8:
        block.set_submodule(name, RoundedLinear(weight, linear.bias, choices, name))
    else:
        linear.weight.data = weight


class RoundedLinear(nn.Linear):
    """A dense linear that treats its input as `choices` say."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, choices: BlockDecisions, name: str):
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", bias)
        self.choices, self.name = choices, name

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        inputs = self.choices.inputs(x, self.name).float()
        return nn.functional.linear(inputs, self.weight.float(), bias).to(x.dtype)


def packed(original: nn.Module, choices: BlockDecisions, dtype: torch.dtype, path: str = "") -> nn.Module:
    """Makes the folded fp32 block with a `QAIGLinear` for every entry of the plan.

    Args:
        original: the fp32 block; not changed.
        choices: made for it.
        dtype: of the scales.
        path: of the block, for the error.

    Raises:
        ValueError: a rounded weight overflows `dtype`.
    """
    block = folded(original, choices)
    for name, entry in choices.entries.items():
        linear = get_linear(block, name)
        rounding = choices.rounding(name, choices.weight(block, name), dtype)
        rounding.check_range(dtype, f"{path}.{name}")
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
                rotation=choices.rotations.get(name),
            ),
        )
    return block


def rounding_errors(original: nn.Module, choices: BlockDecisions, dtype: torch.dtype) -> dict[str, Tensor]:
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
        weight = choices.weight(block, name)
        error = choices.rounding(name, weight, dtype).values - weight
        if name in choices.rotations:
            error = rotate_back(error, choices.rotations[name])
        errors[name] = error / get_linear(factors, name).weight.data
    return errors
