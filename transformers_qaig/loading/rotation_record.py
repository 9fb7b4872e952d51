"""Records the rotated layers in the weights' files, so that config.json alone cannot change how a weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from safetensors import safe_open
from transformers import PreTrainedModel

from ..formats.scheme import Plan, WeightScheme
from ..utils.quote import quote
from .local_names import local_paths

KEY = "qaig_rotations"
"""Key in the metadata of every safetensors file. It holds JSON, path → [block, seed]. 0.1.0 wrote none."""


def record_rotations(plan: Plan) -> dict[str, str]:
    """Returns what is written into the metadata of the files that hold the weights of `plan`."""
    return {KEY: json.dumps({path: _pair(scheme) for path, scheme in plan.items() if scheme.rotation is not None})}


def check_rotations(plan: Plan, model: PreTrainedModel | None, files: Sequence[str]) -> None:
    """Compares the rotations in a plan with those that the weights were saved with.

    Args:
        plan: from config.json, in the names of `model`.
        model: on the meta device, with nothing packed yet; None if the plan has the names that were saved.
        files: the checkpoint's shards.

    Raises:
        ValueError: naming the layers that config.json rotates otherwise, or a record that cannot be read.
    """
    for text, file in _records(files).items():
        recorded = _parsed(text, file)
        names = {path: path for path in recorded} if model is None else local_paths(recorded, model, files)
        saved = {names[path]: rotation for path, rotation in recorded.items()}
        wrong = [path for path, scheme in plan.items() if _pair(scheme) != saved.get(path)]
        if wrong:
            path = wrong[0]
            more = f" (and {len(wrong) - 1} more layers)" if len(wrong) > 1 else ""
            raise ValueError(
                f"config.json gives {path} {_shown(_pair(plan[path]))}, and its weight in {file} was saved with "
                f"{_shown(saved.get(path))}{more}: config.json is damaged, or belongs to other weights."
            )


def _records(files: Sequence[str]) -> dict[str, str]:
    """Returns the files' records → the last file with that one; a checkpoint has one record, in every file."""
    records = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            text = (stored.metadata() or {}).get(KEY)
        if text is not None:
            records[text] = file
    return records


def _parsed(text: str, file: str) -> Mapping[str, object]:
    try:
        recorded = json.loads(text)
    except (ValueError, RecursionError):
        recorded = None
    if not isinstance(recorded, dict):
        raise ValueError(f"`{KEY}` in the header of {file} cannot be read, it says {quote(text)}: the file is damaged.")
    return recorded


def _pair(scheme: WeightScheme) -> list[int] | None:
    return None if scheme.rotation is None else list(scheme.rotation)


def _shown(rotation: object) -> str:
    return "no rotation" if rotation is None else f"the rotation {quote(rotation)} (block and seed)"
