"""Compares a plan that an engine reads with what the headers of a folder's files record of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from ...formats.scheme import Plan, WeightScheme
from ...loading.rotation_record import check_rotations
from ...loading.shards import check_files
from ...loading.width_record import KEY, check_widths
from ...nn.experts_layout import split_path
from ...plan.experts import EVERY, indices_of


def check_records(plan: Plan, folder: str) -> None:
    """Checks what shapes do not tell: rotations, and which expert has which width.

    Args:
        plan: of config.json, in its names.
        folder: that holds the model. Nothing is checked if it is a name on the Hub.

    Raises:
        ValueError: config.json says something else than the files' headers, or a file cannot be read.
    """
    files = sorted(map(str, Path(folder).glob("*.safetensors"))) if Path(folder).is_dir() else []
    check_files(files, folder)
    check_rotations(plan, None, files)
    for file in files:
        check_widths(_expanded(plan, _recorded(file)), [file])


def _recorded(file: str) -> Sequence[str]:
    with safe_open(file, "pt") as stored:
        try:
            recorded = json.loads((stored.metadata() or {}).get(KEY, "[]"))
        except ValueError:
            return []  # the check says so
    return recorded if isinstance(recorded, list) and all(isinstance(bits, str) for bits in recorded) else []


def _expanded(plan: Plan, recorded: Sequence[str]) -> Plan:
    """Returns a plan that names each expert, of as many as the record has."""
    split = {path: split_path(path) for path in plan}
    projections = sorted({f"{parts[0]}.{parts[2]}" for parts in split.values() if parts is not None})
    counts = dict(zip(projections, map(len, recorded)))
    found: dict[str, WeightScheme] = {}
    for path, parts in split.items():
        if parts is None:
            continue
        count = counts.get(f"{parts[0]}.{parts[2]}", 0)
        indices = range(count) if parts[1] == EVERY else indices_of(parts[1], count) or ()
        found |= {f"{parts[0]}.{index}.{parts[2]}": plan[path] for index in indices}
    return found
