"""Writes the model card of an export: the card of the quantized model, what was exported, and how to open it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...report.card_name import MARK
from ...utils.files import write
from .saved_model import SavedModel

_VLLM = "```bash\nvllm serve FOLDER\n```"
OPENING = {
    "compressed-tensors": {
        "transformers": "Transformers loads it with the package `compressed-tensors`.",
        "vllm": _VLLM,
    },
    "mlx": {"mlx-vlm": '```bash\npython -m mlx_vlm.generate --model FOLDER --image picture.png --prompt "..."\n```'},
    "gguf": {
        "llama.cpp": '```bash\nllama-mtmd-cli -m model.gguf --mmproj mmproj.gguf --image picture.png -p "..."\n```'
    },
    "awq": {"vllm": _VLLM, "openvino": "OpenVINO and ONNX Runtime GenAI convert it."},
    "gptq": {"vllm": _VLLM, "gptqmodel": "`GPTQModel.load(FOLDER)` of the package `gptqmodel` loads it."},
}
"""Format → engine → how it opens a folder, in Markdown."""
_LIBRARIES = {"mlx": "mlx", "gguf": "gguf"}
"""Format → the library that the Hub names, where that is not Transformers."""
_LARGEST_CARD = 1 << 20


def write_card(saved: SavedModel, folder: Path, format: str, engines: Iterable[str], notes: Sequence[str]) -> None:
    """Writes README.md: the source's metadata and facts, with the part about loading replaced.

    Args:
        saved: what was exported.
        folder: of the export.
        format: of the export.
        engines: that can read it.
        notes: what a user should know.
    """
    source = saved.folder / "README.md"
    is_readable = source.is_file() and source.stat().st_size <= _LARGEST_CARD
    text = source.read_text(encoding="utf-8", errors="replace") if is_readable else ""
    head, rest = _metadata(text)
    head = re.sub(
        "^library_name: transformers$", f"library_name: {_LIBRARIES.get(format, 'transformers')}", head, flags=re.M
    )
    opening = "\n\n".join(OPENING[format][engine] for engine in engines)
    listed = "".join(f"\n- {note}" for note in notes)
    export = (
        f"## This export\n\nThe weights are those of the quantized model, written in the format {format} without "
        f"rounding them again.{listed and chr(10)}{listed}\n\n## How to open it\n\n{opening}\n"
    )
    if MARK in text:  # our own card: its lines on loading are wrong here
        before, _, after = rest.replace(MARK, "").partition("## How to load it")
        done = after.partition("## What was done")[2]
        rest = f"{before.strip()}\n\n{export}\n## What was done{done}"
    else:
        rest = f"{rest.strip()}\n\n{export}"
    write(folder / "README.md", f"{head}{rest.strip()}\n")


def _metadata(text: str) -> tuple[str, str]:
    """Splits a card into the block of the Hub's metadata, and the rest."""
    if text.startswith("---\n") and "\n---\n" in text[4:]:
        block, _, rest = text[4:].partition("\n---\n")
        return f"---\n{block}\n---\n", rest
    return "", text
