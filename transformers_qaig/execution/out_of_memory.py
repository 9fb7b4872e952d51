"""Adds advice to out-of-memory errors raised during calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

CPU_MEMORY = ("can't allocate memory", "Cannot allocate memory")
"""What errors of memory on the CPU say: of torch's allocator, and of the system."""


@contextmanager
def out_of_memory_explained(
    where: str, device: torch.device | str | None, samples: int, waiting_bytes: Callable[[], int]
) -> Iterator[None]:
    """Turns running out of memory into a `torch.OutOfMemoryError` that says what to reduce, within the context.

    Args:
        where: what was being done, for the message: "at model.layers.3".
        device: where calibration computes; None for the CPU.
        samples: how many are paused.
        waiting_bytes: returns the bytes that all of them hold on the CPU.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        waiting = waiting_bytes()
        held = f", which hold {waiting / 2**30:.1f} GiB on the CPU" if waiting else ""
        raise torch.OutOfMemoryError(
            f"Calibration ran out of memory {where} (computing on {device or 'cpu'}; {samples} samples{held}). "
            "What needs less:\n"
            "  QAIGConfig(num_samples=...): fewer samples wait on the CPU;\n"
            "  CalibrationConfig(max_pixels=..., max_length=...): smaller images and shorter samples are what counts "
            "on the device: samples run one at a time, so no batch size can fall;\n"
            "  CalibrationConfig(expert_memory=...): fewer experts are held in memory at once;\n"
            "  CalibrationConfig(processor=...): a smaller image size or fewer tiles;\n"
            "  QAIGConfig(dataset=...): shorter conversations, fewer images in each;\n"
            "  CalibrationConfig(device='cpu'): slow, but the device is not needed;\n"
            "  QAIGConfig(recipe='rtn'): reads no data.\n"
            f"The error was: {error}"
        ) from error


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that led to it, is about memory: torch has no type of its own for the CPU's."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(said in str(error) for said in CPU_MEMORY):
            return True
        error = error.__cause__
    return False
