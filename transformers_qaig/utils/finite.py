"""Tells whether numbers are finite: of a tensor, of an error, of a model's buffers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; makes no copy. Integers always are."""
    return are_finite([tensor])[0]


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each of some tensors on one device [`is_finite`]; the host waits once for all of them."""
    asked = [tensor.is_floating_point() and tensor.numel() > 0 for tensor in tensors]
    of_each = [_found(tensor) for tensor, is_asked in zip(tensors, asked) if is_asked]
    found = iter(torch.stack(of_each).tolist() if of_each else [])
    return [next(found) if is_asked else True for is_asked in asked]


def _found(tensor: Tensor) -> Tensor:
    if tensor.dtype.itemsize == 1:  # nothing can be compared in float8
        tensor = tensor.float()
    low, high = tensor.aminmax()  # NaN wins both
    return torch.isfinite(low) & torch.isfinite(high)


def is_lower(new: Tensor, old: Tensor) -> Tensor:
    """Compares errors elementwise: one that is not finite is never lower, and any other is lower than it."""
    return torch.isfinite(new) & ~(old <= new)


def buffers_with_nan(model: nn.Module) -> list[str]:
    """Lists the saved buffers that hold NaN; Inf is right in a mask. Those on the meta device have no values."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = ((name, tensor) for name, tensor in model.state_dict().items() if name not in parameters)
    return [name for name, b in buffers if b.is_floating_point() and not b.is_meta and bool(b.isnan().any())]
