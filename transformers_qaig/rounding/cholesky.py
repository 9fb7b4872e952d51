"""Inverts a Cholesky factor; on CPUs the bits are the same for every number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Rows that LAPACK factorizes without splitting its sums among threads."""


def inverse_root(matrix: Tensor) -> Tensor | None:
    """Computes L⁻¹ for matrix = L Lᵀ, or None if it is not positive definite.

    On CPUs it works in blocks of rows, so that all long sums are matrix products: threads divide those by rows and
    columns, not along the sums. With the blocks' own L_ii⁻¹, from the top, L_ji = A_ji L_ii⁻ᵀ and A -= L_i L_iᵀ. Then
    L⁻¹ follows row by row: -L_jj⁻¹ (L_j L⁻¹). Where products change with the threads, so does the result: MKL's do,
    limited to AVX2 on an Intel processor.

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
        return _triangular_inverse(kept)
    inverse = torch.zeros_like(matrix)
    ends = [(start, min(start + BLOCK, len(matrix))) for start in range(0, len(matrix), BLOCK)]
    for start, end in ends:
        root, failed = torch.linalg.cholesky_ex(matrix[start:end, start:end])
        if failed:
            return None
        inverse[start:end, start:end] = _triangular_inverse(root)
        below = matrix[end:, start:end]
        below.copy_(below @ inverse[start:end, start:end].T)
        matrix[end:, end:].addmm_(below, below.T, alpha=-1)
    for start, end in ends[1:]:
        row = matrix[start:end, :start] @ inverse[:start, :start]
        torch.matmul(inverse[start:end, start:end], row.neg_(), out=inverse[start:end, :start])
    return inverse


def _triangular_inverse(root: Tensor) -> Tensor:
    """Inverts a triangular matrix into the unit matrix, which has the strides that it would have by itself."""
    unit = torch.eye(len(root), dtype=root.dtype, device=root.device).T
    return torch.linalg.solve_triangular(root, unit, upper=False, out=unit)
