"""Writes the model card of an export: the card of the quantized model, what was exported, and how to open it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..report.card_name import MARK
from ..utils.files import write
from .saved_model import SavedModel

OPENING = {
    "compressed-tensors": "```bash\nvllm serve FOLDER\n```\n\n"
    "Transformers loads it with the package `compressed-tensors`.",
    "mlx": '```bash\npython -m mlx_vlm.generate --model FOLDER --image picture.png --prompt "..."\n```',
    "gguf": '```bash\nllama-mtmd-cli -m model.gguf --mmproj mmproj.gguf --image picture.png -p "..."\n```',
    "awq": "```bash\nvllm serve FOLDER\n```",
    "gptq": "```bash\nvllm serve FOLDER\n```",
}
"""Format → how its readers open a folder, in Markdown."""
_LARGEST_CARD = 1 << 20


def write_card(saved: SavedModel, folder: Path, format: str, notes: Sequence[str]) -> None:
    """Writes README.md: the source's metadata and facts, with the part about loading replaced."""
    source = saved.folder / "README.md"
    is_readable = source.is_file() and source.stat().st_size <= _LARGEST_CARD
    text = source.read_text(encoding="utf-8", errors="replace") if is_readable else ""
    head, rest = _metadata(text)
    listed = "".join(f"\n- {note}" for note in notes)
    export = (
        f"## This export\n\nThe weights are those of the quantized model, written in the format {format} without "
        f"rounding them again.{listed and chr(10)}{listed}\n\n## How to open it\n\n{OPENING[format]}\n"
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
