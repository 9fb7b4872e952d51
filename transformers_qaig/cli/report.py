"""Runs `transformers-qaig report MODEL|WORK_DIR`: writes the page about a quantized model, or a run that goes on."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from huggingface_hub import hf_hub_download

from ..report.figures import save_figures
from ..report.page.page import page
from ..report.record import Record, progress_line
from ..report.record_file import save_record
from ..report.sources import download, find_record
from ..utils.files import write
from ..utils.printable import say
from .arguments import UsageError, require_model, set_loudness


def run(options: argparse.Namespace) -> None:
    """Writes what is asked for, and prints where.

    Raises:
        UsageError: an argument is wrong.
        ValueError, OSError: there is no report, or it cannot be read or written.
    """
    set_loudness(options)
    if options.html is None and options.png is None and options.json is None:
        raise UsageError("nothing to write: give --html FILE, --png FOLDER or --json FILE.")
    for name in ("html", "json"):
        file = getattr(options, name)
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"--{name} must be a file in a folder that is there, got {file}.")
    if options.png is not None and options.png.exists() and not options.png.is_dir():
        raise UsageError(f"--png must be a folder, got the file {options.png}.")
    if options.png is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--png needs matplotlib: pip install matplotlib, or leave it out.")
    record = _record(options)
    say(f"{record['model'] or options.source}: {progress_line(record)}")
    if options.html is not None:
        write(options.html, page(record))
        say(f"page: {options.html}")
    if options.json is not None:
        save_record(record, options.json)
        say(f"data: {options.json}")
    if options.png is not None:
        say(f"pictures: {', '.join(str(file) for file in save_figures(record, options.png)) or 'none'}")


def _record(options: argparse.Namespace) -> Record:
    folder = Path(options.source).expanduser()
    if folder.is_dir():
        return find_record(folder)
    require_model(options.source)

    def fetch(name: str) -> str:
        return str(hf_hub_download(options.source, name, revision=options.revision or "main", token=options.token))

    return find_record(download(options.source, fetch))
