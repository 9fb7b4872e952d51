"""Columns for GPTQ's inner loop, and what becomes of them."""

import torch
from torch import Tensor

from transformers_qaig.rounding import gptq_columns as columns

Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]


def random_columns(count: int, size: int, groups: int = 3, bits: int = 3, column_major: bool = False) -> Columns:
    """Rows, a part of a larger factor, groups, step, scale, zero points, and the largest code."""
    factor = torch.rand(count + 5, count + 5) * 0.4 - 0.2 + torch.eye(count + 5)
    factor = (factor.T.contiguous().T if column_major else factor)[2 : 2 + count, 2 : 2 + count]
    step = torch.rand(groups, size) * 0.1 + 0.05
    zero = torch.randint(0, 2**bits, (groups, size)).float()
    return (
        torch.randn(count, size) * 0.3, factor, torch.randint(groups, (count,)), step,
        step * (torch.rand_like(step) * 0.1 + 0.95), zero, 2**bits - 1,
    )  # fmt: skip


def by_reference(rows: Tensor, *others: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows.clone()
    errors, codes = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.uint8)
    columns.gptq_columns_reference(rows, errors, codes, *others)
    return rows, errors, codes


def same(actual: tuple[Tensor, Tensor, Tensor], expected: tuple[Tensor, Tensor, Tensor]) -> bool:
    """But for the last bits of sums; a weight within these of a tie may go the other way, and take its row along."""
    far = [~torch.isclose(a.float(), e.float(), rtol=1e-4, atol=1e-5).all(0) for a, e in zip(actual, expected)]
    return int((far[0] | far[1] | far[2]).sum()) <= actual[0].shape[1] // 100
