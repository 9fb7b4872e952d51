"""`OneWriter`: one process saves a model, and the others wait until it has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch.distributed as dist

from ..utils.logging import get_logger
from .joining import TIMEOUT
from .ranks import ALONE, Ranks

logger = get_logger(__name__)
_DONE = b"done"


@dataclass
class OneWriter:
    """Saves a model that several processes hold.

    The n-th save to a folder by the main process is the n-th of every other one. The main process does not wait for the
    others, so a script may also save in the main process alone.

    Attributes:
        rank: of this process.
        size: number of processes.
        run: which run made the model.
        saves: so far, by folder.
    """

    rank: int = 0
    size: int = 1
    run: int = 0
    saves: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, ranks: Ranks = ALONE) -> OneWriter:
        """Makes the writer of a model that some ranks made together."""
        return cls(ranks.rank, ranks.size, ranks.run)

    @property
    def is_other(self) -> bool:
        """Whether another process writes in the place of this one."""
        return self.rank != 0 and self.size > 1

    def write(self, folder: str | os.PathLike[str], save: Callable[[], None], is_main_process: bool = True) -> None:
        """Calls `save` in the main process, and waits for it in the others.

        Args:
            folder: to save to.
            save: saves the model there.
            is_main_process: False where the script says that this process does not write: it does not wait then.

        Raises:
            RuntimeError: saving failed in the main process, or took too long.
        """
        if self.size == 1:
            save()
            return
        if not dist.is_initialized():  # the script has destroyed the group: no process can wait
            if self.rank == 0 or not is_main_process:
                save()
            else:
                logger.warning(
                    "The main process saves %s, and this one does not wait for it: there is no process group any more. "
                    "Save before `destroy_process_group`.", os.fspath(folder),
                )  # fmt: skip
            return
        name = os.fspath(folder)
        self.saves[name] += 1
        store, key = dist.distributed_c10d._get_default_store(), f"qaig/{self.run}/saved/{name}/{self.saves[name]}"
        if self.rank == 0:
            try:
                save()
            except BaseException as error:
                store.set(key, f"{type(error).__name__}: {error}"[:2000])
                raise
            store.set(key, _DONE.decode())
        elif is_main_process:
            _wait(store, key, name)
        else:
            save()


def _wait(store: dist.Store, key: str, folder: str) -> None:
    try:
        store.wait([key], TIMEOUT)
    except RuntimeError as error:
        raise RuntimeError(
            f"the main process did not save the model to {folder}: it has ended, or saves to another folder. Look for "
            "its error above, and give every process the same folder. Without `torchrun`, end the script with "
            "`torch.distributed.barrier()`: the main process may not end first."
        ) from error
    status = store.get(key)
    if status != _DONE:
        raise RuntimeError(f"the main process could not save the model: {status.decode()}")
