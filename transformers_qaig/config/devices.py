"""Devices and memory sizes as users name them: found wrong before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..utils.quote import quote

Device = str | int | torch.device
MEMORIES = ("cpu", "disk", "mps")
"""What `max_memory` may name beside the numbers of accelerators."""


def check_device(device: Any, where: str) -> None:
    """Raise `ValueError`, beginning with `where`, unless tensors can be put on `device`."""
    named = isinstance(device, (str, int, torch.device)) and not isinstance(device, bool)
    try:
        found = torch.device(device) if named else None
        if found is not None and found.type != "meta":
            torch.empty(1, device=found)
            return
        reason = "it is no device that holds values"
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0]
    raise ValueError(f"{where} says {quote(device)}, which cannot be used: {reason}. Name a device of this machine.")


def check_max_memory(memory: Any) -> None:
    """Raise `ValueError` unless `memory` is None or maps numbers of accelerators, 'cpu', 'disk' or 'mps' to sizes."""
    from accelerate.utils import convert_file_size_to_int

    if memory is None:
        return
    if not isinstance(memory, Mapping):
        raise ValueError(f"`max_memory` must be a mapping from devices to sizes, got {quote(memory)}.")
    for device, size in memory.items():
        known = device in MEMORIES if isinstance(device, str) else isinstance(device, int) and device >= 0
        if not known or isinstance(device, bool):
            raise ValueError(
                f"`max_memory` names {quote(device)}: give an accelerator's number (0, 1, ...), or one of {MEMORIES}."
            )
        try:
            number = convert_file_size_to_int(size) if isinstance(size, str) else size
        except ValueError:
            number = None
        numeric = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not numeric or not 0 <= number < math.inf:
            raise ValueError(
                f"`max_memory[{device!r}]` must be a number of bytes or a string such as '10GiB', got {quote(size)}."
            )
