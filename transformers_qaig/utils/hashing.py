"""Hashes tensors, to tell two models or two sets of samples apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def digest(items: Sequence[Mapping[str, Any]], after_each: Callable[[], None] = lambda: None) -> str:
    """Returns a hash of all tensors in a list of mappings.

    Args:
        items: the mappings.
        after_each: called after each tensor: all weights of a large model take long.
    """
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        for name in sorted(item):
            value = item[name]
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                after_each()
    return digest.hexdigest()
