"""Keeps the output of a C library out of a user's standard output."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced_stdout() -> Iterator[None]:
    """Drops what the process writes to file descriptor 1 within the context.

    C code bypasses `sys.stdout`. The descriptor belongs to the whole process: keep the context short.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # a service without a standard output
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        _flush()
        os.dup2(null, 1)
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def _flush() -> None:
    """Writes out what C's own buffers hold, before the descriptor changes."""
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
