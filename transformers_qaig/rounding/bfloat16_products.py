"""Products of bfloat16 matrices with sums in float32, where a device has them: exact, and far faster than float32's."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

AMPERE = (8, 0)
"""The first NVIDIA GPUs whose tensor cores multiply bfloat16."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """Computes a b in float32, for `[N, T]` and `[T, K]`; of bfloat16 only where [`multiplies_exactly`] says so."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.dtype == torch.bfloat16 else a @ b


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Splits float32 into two bfloat16 whose sum is x up to 2⁻¹⁶ of it."""
    high = x.bfloat16()
    return high, (x - high).bfloat16()


@cache
def multiplies_exactly(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 with sums and results in float32: such products round nothing but sums.

    It is asked for a number that bfloat16 does not hold. On the CPU torch rounds the results.
    """
    if device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE):
        return False
    ones = torch.ones(16, 257, dtype=torch.bfloat16, device=device)
    try:
        found = torch.mm(ones, ones.T, out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # NotImplementedError is one
        return False
    return found.dtype == torch.float32 and bool((found == ones.shape[1]).all())
