"""GPTQ's inner loop: rounds some columns of a weight one after the other."""

from typing import Any

import torch
from torch import Tensor

from ..formats.checks import check_dense, check_device
from ..kernels import extension
from ..nn import ops
from ..nn.schema import LIBRARY


def _by_kernel_or_reference(rows: Tensor, *args: Any) -> None:
    """Runs `qaig::gptq_columns` where no kernel is registered: by the device's if it loads now, else the reference."""
    _check(rows, *args)
    if ops.load_kernels(rows.device) and extension.has_kernel("gptq_columns", rows.device.type):
        torch.ops.qaig.gptq_columns(rows, *args)
    else:
        gptq_columns_reference(rows, *args)


def gptq_columns_reference(
    rows: Tensor,
    errors: Tensor,
    codes: Tensor,
    factor: Tensor,
    groups: Tensor,
    step: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
) -> None:
    """Computes `qaig::gptq_columns` in plain torch.

    It uses few operations a column, because launch overhead dominates on an accelerator.

    Args:
        rows: float32 `[C, N]`, the columns, each contiguous. Each is left as it was just before it was rounded, with
            the compensation for earlier columns included.
        errors: float32 `[C, N]`, written: the change that rounding made to each, divided by U_jj.
        codes: uint8 `[C, N]`, written.
        factor: float32 `[C, C]`, U of these columns (see `gptq.py`); the upper triangle is read.
        groups: int64 `[C]`, the quantization group of each column.
        step: float32 `[G, N]`, what a weight of each group is divided by to choose its code.
        scale: float32 `[G, N]`, what a code of each group is multiplied by.
        zero: float32 `[G, N]`, the zero point of each group.
        max_code: codes are 0 to max_code.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit (a kernel raises RuntimeError, also for too many columns).
        IndexError: a group that does not exist (the CPU's kernel raises RuntimeError).
    """
    _check(rows, errors, codes, factor, groups, step, scale, zero, max_code)
    steps, scales, zeros = (of_groups[groups] for of_groups in (step, scale, zero))
    lowest, highest, found = -zeros, max_code - zeros, torch.empty_like(steps)
    each = (t.unbind() for t in (rows, errors, found, steps, scales, lowest, highest))
    for j, (row, error, code, of_step, of_scale, low, high) in enumerate(zip(*each, strict=True)):
        torch.div(row, of_step, out=code).round_().clamp_(low, high)  # less the zero point
        torch.sub(row, torch.mul(code, of_scale, out=error), out=error).div_(factor[j, j])
        if j + 1 < len(rows):
            rows[j + 1 :].sub_(factor[j, j + 1 :].unsqueeze(-1) * error)
    codes.copy_(found.add_(zeros))


def _check(
    rows: Tensor,
    errors: Tensor,
    codes: Tensor,
    factor: Tensor,
    groups: Tensor,
    step: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
) -> None:
    check_dense("rows", rows)
    columns, width = rows.shape if rows.dim() == 2 else (-1, -1)
    count = len(step) if step is not None and step.dim() else -1
    float32 = torch.float32
    wanted = {
        "rows": (rows, (columns, width), float32),
        "errors": (errors, (columns, width), float32),
        "codes": (codes, (columns, width), torch.uint8),
        "factor": (factor, (columns, columns), float32),
        "groups": (groups, (columns,), torch.int64),
        **{name: (t, (count, width), float32) for name, t in {"step": step, "scale": scale, "zero": zero}.items()},
    }
    for name, (tensor, shape, dtype) in wanted.items():
        check_dense(name, tensor)
        check_device(name, tensor, rows)
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{name} must be {dtype} of shape {shape} (columns, rows and groups are those of rows and step), got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            )
    for name in ("rows", "errors", "codes"):
        if any(step == 0 and size > 1 for step, size in zip(wanted[name][0].stride(), wanted[name][1])):
            raise ValueError(f"{name} is written, and its elements share memory: call {name}.contiguous() first")
    if not 0 <= max_code <= 255:
        raise ValueError(f"max_code must be from 0 to 255, got {max_code}")


LIBRARY.impl("gptq_columns", _by_kernel_or_reference, "CompositeExplicitAutograd")

gptq_columns = torch.ops.qaig.gptq_columns
"""The operator: the device's kernel where there is one, else `gptq_columns_reference`, which has its arguments."""
