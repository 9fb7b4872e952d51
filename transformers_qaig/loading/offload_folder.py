"""Stores packed tensors on disk in a folder of one run, which is removed with the last module that reads it."""

from __future__ import annotations

import os
import shutil
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from ..utils.files import require_writable
from ..utils.logging import get_logger

logger = get_logger(__name__)

PREFIX = "transformers-qaig-"


class OffloadFolder:
    """A new folder below the one that the user named, so that runs do not share tensors.

    A lock beside it shows that its process is alive. Each run removes the folders of processes that were killed.

    Args:
        parent: the folder that the user named.

    Raises:
        ValueError: nothing can be written below `parent`.
    """

    def __init__(self, parent: str | os.PathLike[str]):
        """Makes the folder and its lock."""
        folder = Path(parent).expanduser()
        require_writable(folder, "offload_folder")
        _remove_leftovers(folder)
        self.path = folder / f"{PREFIX}{uuid.uuid4().hex}"
        lock = _lock_of(self.path)
        lock.acquire(blocking=False)  # before the folder exists: a clean-up looks at folders only
        self.path.mkdir()
        self.remove = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def __deepcopy__(self, memo: dict[int, Any]) -> OffloadFolder:
        return self  # a copy of a module reads the same files

    def store(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Writes the tensors; returns the index by which Accelerate finds them."""
        from accelerate.utils import offload_weight

        index: dict[str, Any] = {}
        for name, tensor in tensors.items():
            offload_weight(tensor.detach(), name, self.path, index=index)
        return index


def _lock_of(folder: Path) -> FileLock:
    return FileLock(f"{folder}.lock", thread_local=False)  # any thread may collect garbage


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        lock = _lock_of(folder)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            continue  # its run is alive, or it is another user's
        logger.info("%s was left by a run that was killed: it is removed.", folder)
        _remove(folder, lock, os.getpid())


def _remove(folder: Path, lock: FileLock, process: int) -> None:
    if os.getpid() != process:
        return  # a fork of the process whose folder this is
    shutil.rmtree(folder, ignore_errors=True)
    lock.release(force=True)
    Path(lock.lock_file).unlink(missing_ok=True)
