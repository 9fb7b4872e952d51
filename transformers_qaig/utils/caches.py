"""Copies caches of keys and values: a block that is run on trial must not write into the model's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import Cache

_Tree = TypeVar("_Tree")


def with_own_caches(tree: _Tree) -> _Tree:
    """Returns nested containers with a copy of every cache in them; anything else stays the same object."""
    own: _Tree = tree_map_only(Cache, _copy, tree)
    return own


def _copy(cache: Cache) -> Cache:
    # `deepcopy` refuses tensors that autograd recorded.
    return copy.deepcopy(cache, {id(tensor): tensor.clone() for tensor in _tensors(cache, set())})


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yields the tensors that an object holds, in its attributes and containers."""
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in (*parts, *getattr(value, "__dict__", {}).values()):
        yield from _tensors(part, seen)
