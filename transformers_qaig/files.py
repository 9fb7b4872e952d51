"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(file: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A path to write to, in the folder of `file` and with its suffix. It takes the place of `file` at the end of the
    context; what an error leaves is removed, and `file` is as it was.
    """
    file = Path(file)
    temporary = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write(file: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole."""
    with written_whole(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
