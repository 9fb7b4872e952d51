"""Settings as JSON holds them: what goes into config.json comes back equal."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Set
from numbers import Integral, Real
from typing import Any

from ..utils.quote import quote

DEEPEST = 8
"""Levels of dicts and lists; no setting needs more than four."""


def plain(value: Any, where: str, levels: int = DEEPEST) -> Any:
    """
    The same value made of dicts with string keys, lists, strings, numbers, booleans and None only.

    Mappings of any library become dicts, sets become sorted lists, other collections lists, paths strings, and numbers
    and arrays of numpy Python's.

    Args:
        where: the name of the setting, for the message.
        levels: of dicts and lists that there may be.

    Raises:
        ValueError: a value or a key that JSON cannot hold, or too many levels; it is named.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if hasattr(value, "tolist"):  # numbers and arrays of numpy, tensors
        value = value.tolist()
    if isinstance(value, bool):
        return value
    if isinstance(value, (str, os.PathLike)):
        return str.__str__(value) if isinstance(value, str) else os.fspath(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if levels == 0:
        raise ValueError(f"`{where}` is nested more deeply than any setting: {quote(value)}.")
    if isinstance(value, Mapping):
        return {_key(key, where): plain(item, where, levels - 1) for key, item in value.items()}
    if isinstance(value, Collection) and not isinstance(value, (bytes, bytearray)):
        items = [plain(item, where, levels - 1) for item in value]
        return sorted(items, key=lambda item: (str(type(item)), item)) if isinstance(value, Set) else items
    raise ValueError(
        f"`{where}` is saved in config.json, which cannot hold {quote(value)} of type {type(value).__name__}: give "
        "strings, numbers, booleans, lists or dicts."
    )


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise ValueError(f"`{where}` must have strings as keys, as in config.json, got {quote(key)}.")
    return str.__str__(key)
