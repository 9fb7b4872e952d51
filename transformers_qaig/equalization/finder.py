"""Finds the groups of every block of a model, probing once per kind of block."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from torch import nn

from .fold import Group
from .probe import find_groups


class GroupFinder:
    """Finds a block's groups. Blocks of one class whose parameters have the same names and shapes share them.

    Args:
        shared: `id` of every parameter that is used in several places of the model.
        seed: of the probe's random weights.
    """

    def __init__(self, shared: Container[int], seed: int):
        self._shared, self._seed = shared, seed
        self._found: dict[tuple[Any, ...], list[Group]] = {}

    def groups(self, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Group]:
        """Returns the block's groups in execution order, given one call of it; the probe runs where its tensors are."""
        key = (type(block), *((name, p.shape) for name, p in block.named_parameters()))
        if key not in self._found:
            self._found[key] = find_groups(block, args, kwargs, seed=self._seed)
        return self._found[key]

    def foldable(self, block: nn.Module, group: Group) -> bool:
        """Whether a scale can be folded: something absorbs it, and no weight it would change is used elsewhere too."""
        if group.producer is None:
            return False
        names = [*group.linears, group.producer]
        return not any(id(p) in self._shared for name in names for p in block.get_submodule(name).parameters())

    def is_shared(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is used in several places of the model."""
        return id(parameter) in self._shared
