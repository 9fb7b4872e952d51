"""The folder for temporary files, which may have been removed since Python chose it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import SettingError


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
