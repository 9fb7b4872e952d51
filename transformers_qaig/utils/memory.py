"""How much memory is free."""

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Returns the bytes that are free on a device; on the CPU those that the system can give away."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return int(torch.accelerator.get_memory_info(device)[0])
