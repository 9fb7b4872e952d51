"""The folder of what is compiled at first use: where it is, who may own it, and which files are trusted.

What lies there is run as code. So every folder on the way to it, and every file taken from it, belongs to this user or
to root. Nobody else can write there. Only above the cache may a folder such as /tmp be open to all, if it is sticky. A
group may write if it has no other member (a user's own group), or is root's. The rules are those of OpenSSH.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from ..utils.files import is_whole, remove_unfinished, written_with_checksum
from ..utils.logging import get_logger

_UNMAPPED = 65534
"""The user id that a container shows for an unmapped owner of a folder, such as root outside of it."""

_logger = get_logger(__name__)


def cache_folder() -> Path:
    """Returns `QAIG_CACHE`, by default `~/.cache/transformers_qaig`; the folder need not exist yet.

    Raises:
        OSError: there is no home folder.
    """
    try:
        return Path(os.environ.get("QAIG_CACHE") or "~/.cache/transformers_qaig").expanduser().absolute()
    except RuntimeError as error:
        raise OSError(f"{error}: let QAIG_CACHE name a folder for what is compiled at first use") from error


def cached_file(file: Path, make: Callable[[Path], None]) -> Path:
    """Returns a file of the cache folder, and makes it if it is missing or damaged.

    It is made once, also if several threads and processes ask for it at the same time.

    Args:
        file: in a folder below the cache folder.
        make: writes the file to the path that it is called with. Its errors are passed on, and leave no file.

    Returns:
        `file`.

    Raises:
        PermissionError: others could have written it, or could exchange it.
        OSError: it cannot be written.
    """
    require_trusted(file)
    if is_whole(file):
        return file
    _make_folder(file.parent)
    require_trusted(file)
    with locked(file.with_name(f"{file.name}.lock")):
        if not is_whole(file):  # another process may have made it while this one waited
            if file.exists():
                _logger.warning("%s is damaged, or not from here, so it is made again", file)
            remove_unfinished(file.parent, file.name)
            with written_with_checksum(file) as unfinished:
                make(unfinished)
    return file


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Locks a file against other threads and processes that lock it; the end of a process frees it, too."""
    try:
        lock = FileLock(file)
        lock.acquire()
    except NotImplementedError as error:  # of some network file systems
        raise OSError(f"{file} is on a file system that cannot lock files: choose a local folder") from error
    try:
        yield
    finally:
        lock.release()


def why_not_trusted() -> str | None:
    """Returns why nothing is taken from the cache folder, with what to do; None if it is trusted."""
    try:
        require_trusted(cache_folder())
    except OSError as error:
        return str(error)
    return None


def require_trusted(path: Path) -> None:
    """Checks that only this user and root can have written a path, or can exchange it.

    Args:
        path: a file or folder below the cache folder.

    Raises:
        PermissionError: somebody else could have written a file or folder on the way to it, or could exchange one.
    """
    if not hasattr(os, "geteuid"):
        return  # no POSIX permissions
    cache = cache_folder()
    within = {cache, Path(os.path.realpath(cache))}
    for part in _way_to(path):
        above = not any(part == folder or folder in part.parents for folder in within)
        if (reason := _why_not_trusted(part, above)) is not None:
            raise PermissionError(
                f"{part} {reason}, and what lies in the cache folder {cache} is run as code: "
                "let QAIG_CACHE name a folder that only you can write"
            )


def _way_to(path: Path) -> Iterator[Path]:
    """Yields every existing file and folder that decides what `path` names, also those that links lead to."""
    todo, seen = [path, Path(os.path.realpath(path))], set()
    while todo:
        end = todo.pop()
        for part in (end, *end.parents):
            if part in seen:
                continue
            seen.add(part)
            if part.is_symlink():
                todo.append(Path(os.path.normpath(part.parent / os.readlink(part))))
            if part.exists():
                yield part


def _why_not_trusted(part: Path, above: bool) -> str | None:
    status = part.stat()
    if status.st_uid not in {0, os.geteuid(), *([_UNMAPPED] if above else [])}:
        return f"belongs to another user ({_user_name(status.st_uid)})"
    if above and status.st_mode & stat.S_ISVTX:
        return None  # only the owner of an entry can exchange it, and each entry is checked by itself
    if status.st_mode & stat.S_IWOTH:
        return f"can be written by everybody (`chmod go-w {part}` changes that)"
    if status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid):
        return f"can be written by group {status.st_gid} (`chmod g-w {part}` changes that)"
    return None


def _is_own_group(number: int) -> bool:
    """Whether only this user, or root, is a member: on many systems each user has a group of the same name."""
    import grp
    import pwd

    if number == 0:
        return True
    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == number and set(group.gr_mem) <= {user.pw_name}


def _user_name(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"number {number}"


def _make_folder(folder: Path) -> None:
    """Makes a folder and the folders above it; others cannot write to them, whatever the umask."""
    for path in (*reversed(folder.parents), folder):
        try:
            if not path.is_dir():
                path.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:  # a file, a pipe, a circle of links
            raise OSError(
                f"{path} is no folder, and none can be made there ({error.strerror}): let QAIG_CACHE name a folder"
            ) from error
