"""What tests of builds share: a new process, compilers that fail, and what was logged and left."""

import logging
from pathlib import Path

from transformers_qaig.kernels import extension


def restart(monkeypatch):
    """As if the process were a new one."""
    monkeypatch.setattr(extension, "_found", None)


def fake_compiler(path: Path, body: str) -> str:
    """A compiler that knows its version and otherwise does what the lines of shell in `body` say."""
    path.write_text(f'#!/bin/sh\ncase "$1" in --version|-dumpmachine) echo fake; exit 0;; esac\n{body}\n')
    path.chmod(0o755)
    return str(path)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock" and path.is_file())
