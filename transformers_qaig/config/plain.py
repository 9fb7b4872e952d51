"""Converts settings to JSON's own types, so that what goes into config.json comes back equal."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Set
from numbers import Integral, Real
from typing import Any

from ..utils.quote import quote

DEEPEST = 8
"""The most levels of dicts and lists; no setting needs more than four."""


Where = str | tuple["Where", object]
"""A setting's name, or that of what holds a value, and its key there: written out only for an error."""


def plain(value: Any, where: Where, levels: int = DEEPEST) -> Any:
    """Converts a value to dicts with string keys, lists, strings, numbers, booleans and None only.

    Mappings of any library become dicts, sets become sorted lists, other collections lists, paths strings, and numbers
    and arrays of numpy Python's.

    Args:
        value: the setting.
        where: its name, for the message.
        levels: of dicts and lists that there may be.

    Raises:
        ValueError: a value or a key that JSON cannot hold, or too many levels. The message says where it is.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is not dict and hasattr(value, "tolist"):  # numbers and arrays of numpy, tensors
        value = _listed(value, where)
    if isinstance(value, bool):
        return value
    if isinstance(value, (str, os.PathLike)):
        return str.__str__(value) if isinstance(value, str) else os.fspath(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if levels == 0:
        raise ValueError(f"`{_name(where)}` is nested more deeply than any setting: {quote(value)}.")
    if isinstance(value, Mapping):
        return {_key(key, where): plain(item, (where, key), levels - 1) for key, item in value.items()}
    if isinstance(value, Collection) and not isinstance(value, (bytes, bytearray)):
        items = [plain(item, (where, index), levels - 1) for index, item in enumerate(value)]
        return sorted(items, key=lambda item: (str(type(item)), item)) if isinstance(value, Set) else items
    raise _refusal(value, where)


def _listed(value: Any, where: Where) -> Any:
    """Returns the values of an array or a tensor, if it has any."""
    try:
        return value.tolist()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:  # on the meta device, nested, sparse
        raise _refusal(value, where) from error


def _refusal(value: object, where: Where) -> ValueError:
    return ValueError(
        f"`{_name(where)}` is saved in config.json, which cannot hold {quote(value)} of type {type(value).__name__}: "
        "give strings, numbers, booleans, lists or dicts."
    )


def _key(key: Any, where: Where) -> str:
    if not isinstance(key, str):
        raise ValueError(f"`{_name(where)}` must have strings as keys, as in config.json, got {quote(key)}.")
    return str.__str__(key)


def _name(where: Where) -> str:
    return where if isinstance(where, str) else f"{_name(where[0])}[{quote(where[1])}]"
