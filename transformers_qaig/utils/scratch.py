"""Keeps large tensors in files without a name, mapped into memory: the kernel drops their pages and reads them back."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

LEAST = 2**18
"""Bytes from which a tensor is worth a file."""
RESERVE = 2**30
"""Bytes of the disk that stay free."""


class ScratchFiles:
    """Moves tensors out of anonymous memory. A file is gone with its tensor, or with the process.

    Args:
        folder: on a local disk, and there; None for that of Python's `tempfile`, which `TMPDIR` names.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = Path(tempfile.gettempdir()) if folder is None else folder

    def store(self, tensor: Tensor, *, changes: bool = False) -> Tensor:
        """Returns a copy of a tensor in a file, on the CPU.

        A tensor below `LEAST` bytes is returned as it is, and so is one for which the disk has no room.

        Args:
            tensor: of any device.
            changes: whether it will be changed in place: changes go into the file. Otherwise they stay in memory.
        """
        size = tensor.numel() * tensor.element_size()
        if tensor.is_meta or size < LEAST:
            return tensor
        try:
            if shutil.disk_usage(self.folder).free < size + RESERVE:
                return tensor
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
                file.flush()
                return _mapped(file, tensor, changes)
        except (OSError, RuntimeError):  # a full disk, or a folder that cannot be written; torch raises the second
            return tensor


def _mapped(file: IO[bytes], tensor: Tensor, changes: bool) -> Tensor:
    """Maps a file like a tensor. Where it can, without a descriptor: those of experts would be thousands."""
    again = f"/proc/self/fd/{file.fileno()}"
    if os.path.exists(again):
        pages = torch.from_file(again, shared=changes, size=tensor.numel(), dtype=tensor.dtype)
    else:
        access = mmap.ACCESS_WRITE if changes else mmap.ACCESS_COPY
        pages = torch.frombuffer(mmap.mmap(file.fileno(), 0, access=access), dtype=tensor.dtype)
    return pages.view(tensor.shape)
