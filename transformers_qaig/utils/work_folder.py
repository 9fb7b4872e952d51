"""`WorkFolder`: the files of a run's finished steps, each with a fingerprint of the run and a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import SettingError, reason
from .files import open_to_umask, remove_unfinished, require_writable, write, written_whole
from .hashing import digest
from .json_file import read_json
from .logging import get_logger
from .version import __version__

logger = get_logger(__name__)

T = TypeVar("T")
RUN = "run.json"
LARGEST_RUN = 256 << 20
"""The most bytes of a run.json, which holds the plan."""
_RUN_KEY, _CHECKSUM_KEY = "run", "checksum"


class WorkFolder:
    """Stores tensors and facts of one run by name, one file each.

    `run.json` describes the run for people. Whether a file is used depends on the file itself: it holds a fingerprint
    of the run, and a checksum.

    Args:
        folder: made if need be.
        run: what the files depend on, as JSON can hold it.

    Raises:
        SettingError: the folder belongs to another run, is in use by one, or cannot be written.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]):
        self.folder = folder
        self._text = json.dumps({"version": __version__, **run}, indent=1, sort_keys=True)
        self._fingerprint = hashlib.blake2b(self._text.encode(), digest_size=16).hexdigest()
        try:
            require_writable(folder, "work_dir")
        except ValueError as error:
            raise SettingError(str(error)) from error
        self._lock = _lock(folder)
        try:
            self._check_run()
            remove_unfinished(folder)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unlocks the folder for others."""
        self._lock.release()

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Reads the file with this name: tensors on the CPU and facts; None if there is none.

        A file that is damaged, or from another run, counts as none: a warning names it.
        """
        file = self._file(name)
        if not os.path.lexists(file):
            return None
        if not file.is_file():
            logger.warning("%s is no file, so that step is computed again.", file)
            return None
        try:
            with safe_open(file, "pt") as stored:
                facts = stored.metadata() or {}
            tensors = self.tensors(name)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("%s cannot be read, so that step is computed again: %s", file, reason(error))
            return None
        if facts.pop(_CHECKSUM_KEY, None) != _checksum(name, tensors, facts):
            logger.warning("%s is damaged (its checksum differs), so that step is computed again.", file)
            return None
        if facts.pop(_RUN_KEY, None) != self._fingerprint:
            logger.warning("%s belongs to another run, so that step is computed again.", file)
            return None
        return tensors, facts

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Returns the tensors of a file that is there, mapped into memory."""
        with safe_open(self._file(name), "pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}

    def load_as(self, name: str, read: Callable[[dict[str, Tensor], dict[str, str]], T]) -> T | None:
        """Reads the file with this name and returns what `read` makes of its tensors and facts; None if there is none.

        A file that `read` raises an error at counts as none: a warning names it.
        """
        found = self.load(name)
        return None if found is None else understood(found, read, self._file(name))

    def save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        """Writes a file.

        Raises:
            OSError: it cannot be written; the message names the file.
        """
        file = self._file(name)
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        facts = {**facts, _RUN_KEY: self._fingerprint}
        try:
            with written_whole(file) as temporary:
                save_file(tensors, temporary, {**facts, _CHECKSUM_KEY: _checksum(name, tensors, facts)})
                open_to_umask(temporary)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"`work_dir`: {file} cannot be written ({reason(error)}). What was finished before is kept there: "
                "make room, then start the same run again."
            ) from error

    def _file(self, name: str) -> Path:
        return file_of(self.folder, name)

    def _check_run(self) -> None:
        """Checks that the folder is of this run, and writes `run.json` if it is missing or damaged."""
        file = self.folder / RUN
        try:
            known = read_json(file, LARGEST_RUN)
        except (OSError, ValueError):
            known = None
        if isinstance(known, dict):
            ours = json.loads(self._text)
            differs = sorted(key for key in ours.keys() | known.keys() if ours.get(key) != known.get(key))
            if differs:
                raise SettingError(
                    f"`work_dir` {self.folder} holds another run (different {', '.join(differs)}): give an empty "
                    "folder, or the same configuration, model and data to resume it."
                )
            return
        if os.path.lexists(file):
            logger.warning("%s is damaged, so it is written again; blocks are taken if they say they are ours.", file)
        elif any(self.folder.glob("*.safetensors")):
            logger.warning("%s is missing, so it is written again; blocks are taken if they say they are ours.", file)
        write(file, self._text)


def file_of(folder: Path, name: str) -> Path:
    """Returns the path of the file with this name."""
    return folder / f"{name}.safetensors"


def understood(
    found: tuple[dict[str, Tensor], dict[str, str]],
    read: Callable[[dict[str, Tensor], dict[str, str]], T],
    file: Path,
) -> T | None:
    """Returns what `read` makes of a file; None, with a warning that names it, if it fails."""
    try:
        return read(*found)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        logger.warning(
            "%s does not hold what it stands for, which is done again: %s: %s", file, type(error).__name__, error
        )
        return None


@contextmanager
def work_folder(folder: Path | None, run: Mapping[str, Any]) -> Iterator[WorkFolder | None]:
    """Opens a [`WorkFolder`] for the length of a context; None without a folder."""
    store = None if folder is None else WorkFolder(folder, run)
    try:
        yield store
    finally:
        if store is not None:
            store.close()


def _checksum(name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    return hashlib.blake2b((json.dumps([name, sorted(facts.items())]) + digest([tensors])).encode()).hexdigest()


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SettingError(
            f"`work_dir` {folder} is in use by another run: wait until it ends, or give another folder."
        ) from error
    except NotImplementedError as error:
        raise SettingError(
            f"`work_dir` {folder} is on a file system that cannot lock files: give a local folder."
        ) from error
    except OSError as error:  # a folder, a circle of links, another user's file
        raise SettingError(
            f"`work_dir`: {lock.lock_file} cannot be locked ({reason(error)}). Remove it, or give another folder."
        ) from error
    return lock
