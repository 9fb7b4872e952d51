"""The folder for temporary files, which may have been removed since Python chose it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from .errors import SettingError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a limit that has no room for a file."""


def temporary_folder() -> Path:
    """Returns the folder for temporary files: `TMPDIR`, or another that Python found.

    Raises:
        SettingError: it is gone or cannot be written, or Python found none.
    """
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise SettingError(
            f"`TMPDIR`: {error.strerror}. Set `TMPDIR` to a folder for temporary files, and start again."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        reason = "cannot be written" if folder.exists() else "is gone"
        raise SettingError(
            f"`TMPDIR`: {folder}, the folder for temporary files, {reason}. Make it, or set `TMPDIR` to another, and "
            "start again."
        )
    return folder


def raise_if_full(error: Exception, folder: str | Path) -> None:
    """Raises what to do about a temporary file that had no room; other errors are the caller's.

    Args:
        error: what writing raised.
        folder: for temporary files.

    Raises:
        SettingError: `error` says that there is no room.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        raise SettingError(
            f"`TMPDIR`: {Path(folder).parent}, the folder for temporary files, has no room ({error.strerror}). Free "
            "some, or set `TMPDIR` to another folder, and start again."
        ) from error
