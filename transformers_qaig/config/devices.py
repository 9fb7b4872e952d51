"""Checks devices and memory sizes that users name, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..utils.errors import SettingError
from ..utils.quote import quote

Device = str | int | torch.device
MEMORIES = ("cpu", "disk", "mps")
"""Devices that `max_memory` may name beside the numbers of accelerators."""
LARGEST_MEMORY = 2**63


def check_device(device: Any, where: str) -> None:
    """Raises `ValueError`, beginning with `where`, unless tensors can be put on `device`."""
    named = isinstance(device, (str, int, torch.device)) and not isinstance(device, bool)
    try:
        found = torch.device(device) if named else None
        if found is not None and found.type != "meta":
            if found.type not in _available():
                raise RuntimeError(f"PyTorch finds no {found.type!r} device here, only {_available()}")
            torch.empty(1, device=found)
            return
        reason = "it is no device that holds values"
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
    raise SettingError(f"{where} says {quote(device)}, which cannot be used: {reason}. Name a device of this machine.")


def _available() -> list[str]:
    """Lists the kinds of devices that this machine has and this PyTorch can use."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


def bytes_by_device(memory: Any) -> dict[int | str, int] | None:
    """Reads `max_memory`.

    Args:
        memory: None, or a mapping from numbers of accelerators, 'cpu', 'disk' or 'mps' to bytes or '10GiB'. Numbers may
            be numpy's.

    Returns:
        device → bytes; None without `memory`.

    Raises:
        ValueError: something else, or a size that is not finite.
    """
    if memory is None:
        return None
    if not isinstance(memory, Mapping):
        raise ValueError(f"`max_memory` must be a mapping from devices to sizes, got {quote(memory)}.")
    return {_memory_device(device): _size(device, size) for device, size in memory.items()}


def _memory_device(device: Any) -> int | str:
    if isinstance(device, str) and device in MEMORIES:
        return device
    if isinstance(device, (int, np.integer)) and not isinstance(device, bool) and device >= 0:
        return int(device)
    raise ValueError(
        f"`max_memory` names {quote(device)}: give an accelerator's number (0, 1, ...), or one of {MEMORIES}."
    )


def _size(device: Any, size: Any) -> int:
    from accelerate.utils import convert_file_size_to_int

    try:
        number = convert_file_size_to_int(size) if isinstance(size, str) else size
        numeric = isinstance(number, (int, float, np.number)) and not isinstance(number, bool)
        if numeric and 0 <= number <= LARGEST_MEMORY:
            return int(number)
    except (ValueError, OverflowError):  # no size, or one that is infinite as a float
        pass
    raise ValueError(
        f"`max_memory[{quote(device)}]` must be a number of bytes up to 2^63 or a string such as '10GiB', got "
        f"{quote(size)}."
    )
