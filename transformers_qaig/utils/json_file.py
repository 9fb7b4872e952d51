"""Reads JSON files that anybody may have written: only regular files of limited size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(file: Path, largest: int) -> Any:
    """Reads a regular JSON file.

    Args:
        file: its path; a link is followed.
        largest: bytes that it may have.

    Raises:
        OSError: it is missing, no regular file, larger than `largest`, or cannot be read.
        ValueError: it holds no JSON, or JSON that is nested too deeply.
    """
    if not file.is_file():
        raise OSError("it is no file" if file.exists() else "it does not exist")
    if file.stat().st_size > largest:
        raise OSError(f"it is larger than {largest >> 20} MiB")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
