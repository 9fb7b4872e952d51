"""Marks every shard of a save in its header, so that shards of two saves are seen to differ.

A save that is killed half-way leaves shards of two saves in one folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..utils.hashing import digest

KEY = "qaig_save"
_SAMPLED = 1 << 14


def save_mark(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Makes the metadata for each shard: a hash of all names and of some 16,000 values of each tensor.

    The same model gets the same mark whenever it is saved. Offloaded tensors count by their names.
    """
    sampled = {name: _sampled(tensor) for name, tensor in tensors.items() if not tensor.is_meta}
    return {KEY: digest([{**dict.fromkeys(tensors), **sampled}])}


def check_one_save(files: Sequence[str]) -> None:
    """Checks that the shards of a checkpoint come from one save.

    Files that cannot be read are skipped: whatever reads them reports that.

    Args:
        files: paths of the shards. A shard without a mark, as of version 0.1.0 or of other tools, fits any.

    Raises:
        ValueError: two of them are of different saves.
    """
    first: tuple[str, str] | None = None
    for file in files:
        mark = _mark_of(file)
        if mark is None:
            continue
        first = first or (file, mark)
        if mark != first[1]:
            names = Path(first[0]).name, Path(file).name
            raise ValueError(
                f"{names[0]} and {names[1]} are of two different saves, so the checkpoint is half of each: a save into "
                "this folder did not come to its end. Save or download the model again."
            )


def _mark_of(file: str) -> str | None:
    try:
        with safe_open(file, "pt") as stored:
            return (stored.metadata() or {}).get(KEY)
    except (SafetensorError, OSError):
        return None


def _sampled(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-flat.numel() // _SAMPLED) or 1]
