"""Where tensors are made that nobody gave a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """
    Within the context, a tensor made without a device is on the CPU, whatever `torch.set_default_device` or a
    `torch.device(...)` around says. Calibration draws and counts there; what a block needs is moved explicitly.
    """
    if torch.get_default_device().type == "cpu":  # the context costs every call of torch a little
        yield
        return
    with torch.device("cpu"):
        yield
