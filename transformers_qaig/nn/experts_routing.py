"""The operators around experts: `qaig::experts_route` sorts rows by expert, `qaig::experts_sum` adds them up."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats.checks import check_device, check_dispatchable
from ..formats.packing import SCALE_DTYPES
from ..kernels import extension
from .forward_mode import is_active
from .ops import load_kernels
from .schema import LIBRARY

_MOST_SUMMED, _COLUMNS = 16, 64
"""`Tensor.sum` adds up to 16 rows one after the other, as the kernel does, where columns fill its registers."""


def route(hidden: Tensor, index: Tensor, num_experts: int, num_choices: int) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `qaig::experts_route`, with the kernel unless a derivative is asked for.

    Arguments as in `experts_route_reference`.

    Raises:
        ValueError: an index is out of range.
    """
    if index.dtype not in (torch.int32, torch.int64) or not has_no_derivatives(hidden, index):
        return experts_route_reference(hidden, index, num_experts, num_choices)
    try:
        return torch.ops.qaig.experts_route.default(hidden, index, num_experts, num_choices)
    except RuntimeError:  # all that the kernel can raise
        check_choices(index, num_choices)
        raise


def weighted_sum(rows: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    """Computes `qaig::experts_sum`, with the kernel unless a derivative is asked for.

    Arguments as in `experts_sum_reference`.
    """
    has_kernel = rows.dtype in SCALE_DTYPES and weights.dtype in SCALE_DTYPES
    is_equal = weights.shape[-1] <= _MOST_SUMMED and rows.shape[-1] % _COLUMNS == 0  # to the bit
    if has_kernel and is_equal and has_no_derivatives(rows, weights):
        return torch.ops.qaig.experts_sum.default(rows, weights, order)
    return experts_sum_reference(rows, weights, order)


def experts_route_reference(
    hidden: Tensor, index: Tensor, num_experts: int, num_choices: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `qaig::experts_route` in plain torch: the rows of all choices, sorted by expert.

    Args:
        hidden: `[T, H]`, any floating dtype.
        index: integers `[T, k]`, the experts of each token, from 0 to `num_choices`.
        num_experts: E. Choices from E on belong to no expert, and come last.
        num_choices: E or more.

    Returns:
        x: `[T * k, H]`, a row for each choice. Choices of one expert stay in order.
        offsets: int32 `[E + 1]`, where the rows of each expert begin.
        order: int64 `[T * k]`, which element of `index` each row is.

    Raises:
        ValueError: an index is out of range. (Compiled kernels raise RuntimeError, CUDA devices nothing.)
    """
    ids, order = index.reshape(-1).sort(stable=True)
    if not torch.compiler.is_compiling() and ids.device.type == "cpu":  # other devices are not waited for
        check_choices(ids, num_choices)
    offsets = torch.searchsorted(ids, torch.arange(num_experts + 1, device=ids.device), out_int32=True)
    return hidden[order // index.shape[-1]], offsets, order


def experts_sum_reference(rows: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    """Computes `qaig::experts_sum` in plain torch: the sum of each token's rows times their weights.

    Args:
        rows: `[T * k, H]`, as `experts_route_reference` orders them.
        weights: `[T, k]`.
        order: int64 `[T * k]`, which element of `weights` belongs to each row.

    Returns:
        `[T, H]`, in the dtype to which torch promotes rows and weights.
    """
    rows = rows * weights.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return rows[back].view(*weights.shape, rows.shape[-1]).sum(-2)


def check_choices(index: Tensor, count: int) -> None:
    """Raises `ValueError` for an index that is below 0 or above `count`."""
    if not index.numel():
        return
    lowest, highest = (int(value) for value in index.aminmax())
    if lowest < 0 or highest > count:
        raise ValueError(
            f"the indices of the chosen experts must be from 0 to {count} ({count} for none), got {lowest} to {highest}"
        )


def has_no_derivatives(*tensors: Tensor) -> bool:
    """Whether tensors on the CPU are computed with at once, and for no derivative: not in a compiled graph either."""
    return (
        all(tensor.is_cpu for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.compiler.is_compiling()
        and not is_active()
    )


def _experts_route(hidden: Tensor, index: Tensor, num_experts: int, num_choices: int) -> tuple[Tensor, Tensor, Tensor]:
    check_dispatchable("hidden", hidden, index=index)
    if load_kernels(hidden.device) and extension.has_kernel("experts_route", hidden.device.type):
        return torch.ops.qaig.experts_route(hidden, index, num_experts, num_choices)
    return experts_route_reference(hidden, index, num_experts, num_choices)


def _experts_sum(rows: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    check_dispatchable("rows", rows, weights=weights, order=order)
    if load_kernels(rows.device) and extension.has_kernel("experts_sum", rows.device.type):
        return torch.ops.qaig.experts_sum(rows, weights, order)
    return experts_sum_reference(rows, weights, order)


@torch.library.register_fake("qaig::experts_route", lib=LIBRARY)
def _route_fake(hidden: Tensor, index: Tensor, num_experts: int, num_choices: int) -> tuple[Tensor, Tensor, Tensor]:
    check_device("index", index, hidden)
    rows = index.shape[0] * index.shape[1]
    offsets = index.new_empty(num_experts + 1, dtype=torch.int32)
    return hidden.new_empty(rows, hidden.shape[1]), offsets, index.new_empty(rows, dtype=torch.int64)


@torch.library.register_fake("qaig::experts_sum", lib=LIBRARY)
def _sum_fake(rows: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    check_device("weights", weights, rows)
    check_device("order", order, rows)
    return rows.new_empty(weights.shape[0], rows.shape[1], dtype=torch.promote_types(rows.dtype, weights.dtype))


LIBRARY.impl("experts_route", _experts_route, "CompositeExplicitAutograd")
LIBRARY.impl("experts_sum", _experts_sum, "CompositeExplicitAutograd")
