"""How far two correct sums may lie apart."""

import torch
from torch import Tensor

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of their dtype, small elements measured by the size of the largest.

    A sum that cancels has no relative accuracy: its terms have.
    """
    assert actual.dtype == expected.dtype
    tolerance = ROUNDING[expected.dtype]
    largest = float(expected[expected.isfinite()].abs().max()) if expected.isfinite().any() else 0.0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True)
