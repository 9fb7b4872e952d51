"""Reads JSON files that anybody may have written: only regular files of limited size."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .quote import quote


def read_json(file: Path, largest: int, last_counts: bool = False) -> Any:
    """Reads a regular JSON file.

    Args:
        file: its path; a link is followed.
        largest: bytes that it may have.
        last_counts: whether the last of equal keys counts, as for the readers of most JSON; otherwise it is an error.

    Raises:
        OSError: it is missing, no regular file, larger than `largest`, or cannot be read.
        ValueError: it holds no JSON, JSON that is nested too deeply, or an object that has a key twice.
    """
    if not file.is_file():
        raise OSError("it is no file" if file.exists() else "it does not exist")
    if file.stat().st_size > largest:
        raise OSError(f"it is larger than {largest >> 20} MiB")
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=dict if last_counts else _without_doubles)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of its pairs; JSON readers would silently keep the last of equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"one of its objects has {quote(double)} twice")
    return found
