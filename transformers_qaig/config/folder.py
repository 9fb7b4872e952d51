"""Checks folders that users name, before anything is read."""

from __future__ import annotations

import os
import stat
from typing import Any

from ..utils.errors import reason
from ..utils.quote import quote


def check_folder(folder: Any, name: str) -> None:
    """Checks that a setting may be the path of a folder, which need not be there.

    Args:
        folder: the setting.
        name: of the setting, for the message.

    Raises:
        ValueError: it is no path, or that of something else than a folder.
    """
    path = os.fspath(folder) if isinstance(folder, (str, os.PathLike)) else None
    try:
        if not isinstance(path, str) or not path:
            raise ValueError
        status = os.stat(os.path.expanduser(path))
    except FileNotFoundError:
        return
    except (ValueError, OSError) as error:  # a NUL, half of a surrogate, too long, a circle of links
        why = f" ({reason(error)})" if str(error) else ""
        raise ValueError(f"`{name}` must be the path of a folder, got {quote(folder)}{why}.") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"`{name}` must be the path of a folder, and {folder} is a file.")
