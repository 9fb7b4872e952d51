"""Arguments of `transformers-qaig report`."""

from __future__ import annotations

from pathlib import Path

from .options import Commands, add_command, add_loading


def add(commands: Commands) -> None:
    """Adds the command to the parser."""
    command = add_command(
        commands,
        "report",
        "MODEL",
        "one page about what was done to a model",
        "Writes a page that needs no network: sizes, bits by layer, errors, what a bit buys, calibration data.\n"
        "Of the work_dir of a run it shows what is done so far.",
        "  transformers-qaig report out/w3 --html report.html\n"
        "  transformers-qaig report out/work --html report.html --png pictures",
    )
    command.add_argument("source", metavar="MODEL", help="quantized model, folder or Hub id; or a run's work_dir")
    command.add_argument("--html", type=Path, metavar="FILE", help="page to write")
    command.add_argument("--png", type=Path, metavar="FOLDER", help="also draw pictures there; needs matplotlib")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the data behind the page")
    add_loading(command)
