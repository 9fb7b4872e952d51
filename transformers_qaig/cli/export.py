"""Runs `transformers-qaig export MODEL OUT`: writes a quantized model in the format of another library."""

from __future__ import annotations

import argparse

from ..integrations.exporting.run import export
from ..utils.printable import say
from ..utils.readable import readable_size


def run(options: argparse.Namespace) -> None:
    """Exports, and prints where the files are and what to know about them.

    Raises:
        ExportError: the format cannot hold the model exactly.
        SettingError: an argument is wrong.
        ValueError: the model is damaged.
    """
    done = export(options.model, options.out, format=options.format, engine=options.engine)
    size = sum(file.stat().st_size for file in done.folder.iterdir() if file.suffix in (".safetensors", ".gguf"))
    say(f"Exported to {done.folder}: {readable_size(8 * size)} of weights in the format {done.format}.")
    for note in done.notes:
        say(f"- {note}")
