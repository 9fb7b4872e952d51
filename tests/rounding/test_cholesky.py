"""The inverse of a Cholesky factor."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from transformers_qaig.rounding import cholesky
from transformers_qaig.rounding.cholesky import BLOCK, STRIPE, inverse_root, invert_in_place


def positive(size: int) -> torch.Tensor:
    x = torch.randn(size, 2 * size)
    return x @ x.T / size + torch.eye(size)


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 3 * BLOCK - 5, STRIPE + BLOCK, 2 * STRIPE + 3])
def test_it_is_the_inverse_of_the_root(size: int) -> None:
    matrix = positive(size)
    found = inverse_root(matrix.clone())
    assert found is not None
    assert torch.equal(found, found.tril())
    expected = torch.linalg.inv(torch.linalg.cholesky(matrix.double()))
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("size", [40, 2 * BLOCK + 3])
def test_there_is_none_of_an_indefinite_matrix(size: int) -> None:
    matrix = positive(size)
    matrix[-1, -1] = -1
    assert inverse_root(matrix) is None


def by_threads(compute: Callable[[], Tensor]) -> list[Tensor]:
    """What is computed with one, two and three threads."""
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(compute())
    finally:
        torch.set_num_threads(threads)
    return found


def test_the_number_of_threads_changes_no_bit() -> None:
    matrix = positive(STRIPE + 2 * BLOCK - 5)
    first, *others = by_threads(lambda: matrix @ matrix)
    if not all(torch.equal(first, other) for other in others):
        pytest.skip(
            "a matrix product changes with the number of threads here, as MKL's with AVX2 on Intel's processors"
        )
    first, *others = by_threads(lambda: inverse_root(matrix.clone()))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("size", [1, 8, 9, 70])
def test_halves_of_a_triangle_give_its_inverse(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cholesky, "SOLVED", 8)
    root = torch.linalg.cholesky(positive(size))
    expected = torch.linalg.inv(root.double())
    for stored in (root.clone(), root.T.contiguous().T):  # by rows, and by columns as a GPU's library stores it
        found = invert_in_place(stored)
        assert found is stored
        assert (found - expected).norm() < 1e-5 * expected.norm()
