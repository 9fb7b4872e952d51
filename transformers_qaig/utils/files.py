"""Writes files that are complete or absent, also after a kill or a power loss, and that reveal damage by a checksum.

Imports nothing but the standard library: `setup.py` runs this file where the package cannot be imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Prefix of files and folders that are not finished. A killed writer leaves them behind."""


@contextmanager
def written_whole(file: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to, which replaces `file` at the end of the context.

    The path is in the folder of `file` and has its suffix. It replaces `file` once the disk has it. After an error the
    path is removed, and `file` is as it was.

    Raises:
        OSError: for example, the disk is full; it names `file` if it names none.
    """
    file = Path(file)
    temporary = file.with_name(f"{UNFINISHED}{secrets.token_hex(6)}-{file.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, file)
        _sync_folder(file.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write(file: str | os.PathLike[str], text: str) -> None:
    """Writes a text file whole; half of a surrogate pair, which UTF-8 cannot hold, as its escape."""
    with written_whole(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def written_with_checksum(file: str | os.PathLike[str]) -> Iterator[Path]:
    """Does as `written_whole`, with a checksum beside the file for `is_whole`. Only its owner can write the file."""
    with written_whole(file) as temporary:
        yield temporary
        temporary.chmod(temporary.stat().st_mode & 0o755)
        write(_checksum_file(Path(file)), _checksum(temporary))


def is_whole(file: Path) -> bool:
    """Whether `written_with_checksum` wrote this file and it is unchanged."""
    beside = _checksum_file(file)
    return file.is_file() and beside.is_file() and beside.read_bytes() == _checksum(file).encode()


def open_to_umask(file: Path) -> None:
    """Gives a file the permissions that a new file here has: one that safetensors wrote is its owner's alone."""
    probe = file.with_name(f"{UNFINISHED}{secrets.token_hex(6)}-mode")
    with contextlib.suppress(OSError):  # a file system without permissions
        probe.touch()
        try:
            file.chmod(file.stat().st_mode | probe.stat().st_mode)
        finally:
            probe.unlink(missing_ok=True)


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Removes what killed writers left in `folder`, of files called `name`.

    Call it only under a lock that keeps all writers out.
    """
    for path in folder.glob(f"{UNFINISHED}*-{name}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def require_writable(folder: Path, name: str) -> None:
    """Makes `folder` if need be, and tries to write there.

    Args:
        folder: any path.
        name: of the setting that names it, for the message.

    Raises:
        ValueError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f"{UNFINISHED}{secrets.token_hex(6)}-trial"
        try:
            trial.write_bytes(b"?")
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"`{name}`: nothing can be written to {folder} ({error.strerror}). Give another folder."
        ) from error


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _checksum_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _sync(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    """Syncs the folder, so that a new name survives a power loss, too. Not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
