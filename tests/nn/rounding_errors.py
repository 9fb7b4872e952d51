"""How far a kernel's result may be from the exact product, and how far it is."""

import torch
from torch import Tensor

ROUNDING = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}
"""Largest ‖error‖ / ‖y‖ of sums in float32, rounded to the dtype."""


def error(actual: Tensor, expected: Tensor) -> float:
    """Returns ‖error‖ / ‖y‖."""
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30))
