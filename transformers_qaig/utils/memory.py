"""How much memory is free."""

import psutil
import torch

UNKNOWN = 4 << 30
"""What is assumed of an accelerator that does not tell."""


def free_memory(device: torch.device) -> int:
    """Returns the bytes that are free on a device; on the CPU those that the system can give away."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    try:
        return int(torch.accelerator.get_memory_info(device)[0])
    except RuntimeError:  # torch knows this only of some backends
        return UNKNOWN
