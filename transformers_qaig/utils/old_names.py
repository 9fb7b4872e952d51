"""Warns of names that a later release will not have."""

from __future__ import annotations

import warnings


def warn_of_old_name(old: str, new: str) -> None:
    """Warns the caller that reads `old`, two calls up, that `new` takes its place."""
    warnings.warn(f"`{old}` ends with the next release. Use `{new}`.", FutureWarning, stacklevel=3)
