"""Copies caches of keys and values: a block that is run on trial must not write into the model's own."""

import copy
from typing import TypeVar

from torch.utils._pytree import tree_map_only
from transformers import Cache

_Tree = TypeVar("_Tree")


def with_own_caches(tree: _Tree) -> _Tree:
    """Returns nested containers with a copy of every cache in them; anything else stays the same object."""
    own: _Tree = tree_map_only(Cache, copy.deepcopy, tree)
    return own
