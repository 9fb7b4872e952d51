"""Exports to GGUF, which llama.cpp and what is built on it read: a file for the language model, one for the tower.

Codes go into blocks of 32 that have a scale, and for Q4_1 a minimum, in float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ..refusals import Refusal, refuse_kinds, refuse_rotated, refuse_rounded_inputs
from ..saved_model import SavedModel

NAME = "gguf"
ENGINES: tuple[str, ...] = ("llama.cpp",)
MODEL_FILE, TOWER_FILE = "model.gguf", "mmproj.gguf"


def refusals(saved: SavedModel, engine: str) -> Iterator[Refusal]:
    """Yields what llama.cpp cannot hold."""
    if find_spec("gguf") is None:
        yield Refusal("the package gguf, which names tensors for llama.cpp, is not installed", "`pip install gguf`")
        return
    from . import blocks, language, tower, vocabulary

    weights = list(saved.packed.values())
    yield from refuse_rotated(weights)
    yield from refuse_rounded_inputs(weights)
    reason = "this export writes no experts as GGUF"  # nor unpacked ones: no architecture of these has any
    yield from refuse_kinds(weights, {"expert": (reason, "export as compressed-tensors")})
    yield from blocks.refusals(saved)
    yield from language.refusals(saved)
    yield from vocabulary.refusals(saved)
    yield from tower.refusals(saved)


def notes(saved: SavedModel, engine: str) -> Iterator[str]:
    """Yields how exact the weights are, and what a user of the files must know."""
    from . import blocks, vocabulary

    yield from blocks.notes(saved)
    yield from vocabulary.notes(saved)


def write(saved: SavedModel, folder: Path) -> None:
    """Writes `model.gguf`, and `mmproj.gguf` if there is a tower."""
    from . import language, tower

    language.write(saved, folder / MODEL_FILE)
    if tower.find(saved):
        tower.write(saved, folder / TOWER_FILE)
