"""Suggests the nearest known name for a misspelt one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 200  # characters; comparing longer text is slow, and it is no misspelt name


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` with the nearest of `known`; empty if none is near."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(str(name)[:_LONGEST].lower(), list(by_lower), n=1)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
