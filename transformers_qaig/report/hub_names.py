"""Tells names on the Hub from paths, so that a card names no folder of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..data.sources import TABLES

HUB = "https://huggingface.co"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def repository_id(name: str | None) -> str | None:
    """Returns `owner/name` if it is such a name and no path here."""
    return name if name and _NAME.fullmatch(name) and not Path(name).exists() else None


def dataset_id(dataset: Any) -> str | None:
    """Returns the repository of a data set that is given as `owner/name` or `owner/name:split`."""
    name = dataset.partition(":")[0] if isinstance(dataset, str) else ""
    return None if name.endswith((".json", ".jsonl", *TABLES)) else repository_id(name)
