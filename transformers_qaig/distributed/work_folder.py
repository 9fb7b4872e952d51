"""`SharedFolder`: a work folder that one rank reads and writes for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..utils.work_folder import WorkFolder, file_of, understood, work_folder
from .ranks import Ranks

T = TypeVar("T")


class SharedFolder:
    """A [`WorkFolder`] of the main rank; the others get what it reads.

    Args:
        path: of the folder.
        folder: on the main rank; None on the others.
        ranks: that share it.
    """

    def __init__(self, path: Path, folder: WorkFolder | None, ranks: Ranks):
        self._path, self._folder, self._ranks = path, folder, ranks

    def load_as(self, name: str, read: Callable[[dict[str, Tensor], dict[str, str]], T]) -> T | None:
        """Reads a file as [`WorkFolder.load_as`] does, on all ranks."""
        found = self._ranks.on_main(lambda: None if self._folder is None else self._folder.load(name))
        return None if found is None else understood(found, read, file_of(self._path, name))

    def save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        """Writes a file. An error is raised on all ranks."""

        def write() -> None:
            if self._folder is not None:
                self._folder.save(name, tensors, facts)

        self._ranks.on_main(write)

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """Returns the tensors of a file that is there, mapped into memory; None on other ranks than the main one."""
        return None if self._folder is None else self._folder.tensors(name)


@contextmanager
def shared_folder(
    folder: Path | None, run: Callable[[Callable[[], None]], Mapping[str, Any]], ranks: Ranks
) -> Iterator[SharedFolder | None]:
    """Opens a work folder for the length of a context; None without a folder.

    Args:
        folder: of the main rank.
        run: makes what the files depend on; gets a function to call now and then, where that takes long.
        ranks: that share it.
    """
    if folder is None:
        yield None
        return
    with ExitStack() as stack:
        opened: WorkFolder | None = None

        def open_folder(alive: Callable[[], None]) -> None:
            nonlocal opened
            opened = stack.enter_context(work_folder(folder, run(alive)))

        ranks.on_main_for_long(open_folder)
        yield SharedFolder(folder, opened, ranks)
