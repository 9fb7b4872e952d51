"""Arguments of `transformers-qaig env`."""

from __future__ import annotations

from .options import Commands, add_command


def add(commands: Commands) -> None:
    """Adds the command to the parser."""
    add_command(
        commands,
        "env",
        "",
        "what this installation runs, and why not faster",
        "Prints versions, processor, GPUs, and which kernel runs each operator. Paste it into a bug report.",
        "  transformers-qaig env",
    )
