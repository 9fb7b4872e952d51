"""Measures free and used memory. A container's limit counts, not the machine's memory alone."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

UNKNOWN = 4 << 30
"""What is assumed of an accelerator that does not tell."""
ROOT = Path("/")
"""Where Linux tells of control groups, below `proc` and `sys`."""


def free_memory(device: torch.device) -> int:
    """Returns the bytes that are free on a device; on the CPU those that this process can still get."""
    if device.type == "cpu":
        return min([int(psutil.virtual_memory().available), *_left_in_groups()])
    try:
        return int(torch.accelerator.get_memory_info(device)[0])
    except RuntimeError:  # torch knows this only of some backends
        return UNKNOWN


def _left_in_groups() -> list[int]:
    """Returns the bytes left under each limit of this process's control groups, of version 1 or 2; none elsewhere."""
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = ROOT / "sys/fs/cgroup" / controllers
            group = top / path.lstrip("/")
            # A limit holds for the groups below it, too. A container may see its own group as the top one.
            left += [_left_in(each) for each in (group, *group.parents) if each == top or top in each.parents]
    return [found for found in left if found is not None]


def _left_in(group: Path) -> int | None:
    """Returns the bytes left under a group's limit; None if it has none. Cached files do not count as used."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):  # "max" is no limit
            most = int((group / limit).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return max(most - int((group / used).read_text()) + int(stat[cached]), 0)
    return None


def process_memory() -> int:
    """Returns the bytes that this process holds in memory."""
    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device | str | None) -> int:
    """Returns the most bytes that tensors took on an accelerator so far; 0 for the CPU, or if torch cannot tell."""
    if device is None or torch.device(device).type == "cpu":
        return 0
    try:
        return int(torch.accelerator.max_memory_allocated(device))
    except RuntimeError:
        return 0


def return_freed_memory() -> None:
    """Returns what was freed to the system: glibc keeps freed pieces below 32 MB, which add up over many weights."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
