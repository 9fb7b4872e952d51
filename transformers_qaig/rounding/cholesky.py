"""Inverts a Cholesky factor; on CPUs the bits are the same for every number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 128
"""Rows that LAPACK factorizes without splitting its sums among threads."""
SOLVED = 1024
"""Rows of a triangle that an accelerator inverts column by column."""
STRIPE = 512
"""Columns that are multiplied at once: of a triangle nearly half is left out so, in products that are large still."""


def inverse_root(matrix: Tensor) -> Tensor | None:
    """Computes L⁻¹ for matrix = L Lᵀ, or None if it is not positive definite.

    On CPUs it works in blocks of rows, so that all long sums are matrix products: threads divide those by rows and
    columns, not along the sums. With the blocks' own L_ii⁻¹, from the top, L_ji = A_ji L_ii⁻ᵀ and A -= L_i L_iᵀ. Then
    L⁻¹ follows row by row: -L_jj⁻¹ (L_j L⁻¹). Upper triangles are mostly left out. Where products change
    with the threads, so does the result: MKL's do, limited to AVX2 on an Intel processor.

    Args:
        matrix: [K, K], symmetric; overwritten. At most one more of its size is made.
    """
    if matrix.device.type != "cpu":
        root, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            return None
        kept = matrix.T  # with the strides of `root`, which is freed before the inverse is made
        kept.copy_(root)
        del root
        return invert_in_place(kept)
    inverse = torch.zeros_like(matrix)
    ends = [(start, min(start + BLOCK, len(matrix))) for start in range(0, len(matrix), BLOCK)]
    for start, end in ends:
        root, failed = torch.linalg.cholesky_ex(matrix[start:end, start:end])
        if failed:
            return None
        inverse[start:end, start:end] = _triangular_inverse(root)
        below = matrix[end:, start:end]
        below.copy_(below @ inverse[start:end, start:end].T)
        for first, last in _stripes(end, len(matrix)):
            matrix[first:, first:last].addmm_(below[first - end :], below[first - end : last - end].T, alpha=-1)
    for start, end in ends[1:]:
        row = matrix.new_empty(end - start, start)
        for first, last in _stripes(0, start):
            torch.matmul(matrix[start:end, first:start], inverse[first:start, first:last], out=row[:, first:last])
        torch.matmul(inverse[start:end, start:end], row.neg_(), out=inverse[start:end, :start])
    return inverse


def _stripes(start: int, end: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + STRIPE, end)) for first in range(start, end, STRIPE))


def _triangular_inverse(root: Tensor) -> Tensor:
    """Inverts a triangular matrix into the unit matrix, which has the strides that it would have by itself."""
    unit = torch.eye(len(root), dtype=root.dtype, device=root.device).T
    return torch.linalg.solve_triangular(root, unit, upper=False, out=unit)


def invert_in_place(root: Tensor) -> Tensor:
    """Inverts a lower triangular matrix, half by half, for an accelerator.

    That is two thirds of the arithmetic of a solution for each column, and nearly all of it is in large products.
    """
    if len(root) <= SOLVED:
        return root.copy_(_triangular_inverse(root))
    middle = len(root) // 2
    first, below, last = root[:middle, :middle], root[middle:, :middle], root[middle:, middle:]
    invert_in_place(first)
    invert_in_place(last)
    below.copy_((last @ below).neg_() @ first)
    return root
