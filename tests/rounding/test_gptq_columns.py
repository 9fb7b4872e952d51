"""`qaig::gptq_columns` refuses what does not fit, by name; the CPU's kernel gives the bits of the reference."""

from typing import Any

import pytest
import torch

from tests.kernels.cuda.gptq_cases import by_reference, random_columns
from transformers_qaig.kernels import extension
from transformers_qaig.rounding.gptq_columns import gptq_columns, gptq_columns_reference

NAMES = ("rows", "errors", "codes", "factor", "groups", "step", "scale", "zero")


kernel = pytest.mark.skipif(not extension.load(), reason="no compiled kernels")


def arguments() -> dict[str, Any]:
    step = torch.full((2, 5), 0.1)
    tensors = (
        torch.randn(4, 5), torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.uint8), torch.eye(4),
        torch.tensor([0, 0, 1, 1]), step, step.clone(), torch.zeros(2, 5),
    )  # fmt: skip
    return dict(zip(NAMES, tensors, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t.to(torch.int16), lambda t: t.to_sparse(), lambda t: None]
)
def test_a_tensor_that_does_not_fit_is_named(name: str, change) -> None:
    given = arguments()
    given[name] = change(given[name])
    other = {"rows": "errors", "step": "scale"}.get(name, name)  # the others are measured by these two
    with pytest.raises(ValueError, match=f"{name}|{other}"):
        gptq_columns_reference(*given.values(), 15)
    with pytest.raises((ValueError, RuntimeError)):
        gptq_columns(*given.values(), 15)


@pytest.mark.parametrize("name", ["rows", "errors", "codes"])
def test_what_is_written_has_memory_of_its_own(name: str) -> None:
    given = arguments()
    given[name] = given[name][:1].expand(4, 5)
    with pytest.raises(ValueError, match=f"{name} is written"):
        gptq_columns_reference(*given.values(), 15)
    with pytest.raises((ValueError, RuntimeError), match=f"{name} (is written|must be contiguous)"):
        gptq_columns(*given.values(), 15)


def test_codes_fit_into_a_byte() -> None:
    for columns in (gptq_columns, gptq_columns_reference):
        with pytest.raises((ValueError, RuntimeError), match="max_code"):
            columns(*arguments().values(), 256)


@kernel
@pytest.mark.parametrize("group", [-1, 2])
def test_a_group_that_does_not_exist_is_not_read(group: int) -> None:
    given = arguments()
    given["groups"] = torch.tensor([0, 1, group, 0])
    with pytest.raises(RuntimeError, match="groups must be from 0 to 1"):
        gptq_columns(*given.values(), 15)


@kernel
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 255), (7, 256), (18, 257), (31, 40), (32, 1200), (5, 0)])
def test_the_kernel_gives_the_bits_of_the_reference(count: int, size: int, bits: int, column_major: bool) -> None:
    rows, *others = random_columns(count, size, bits=bits, column_major=column_major)
    rows[:, : size // 4] *= 1e4  # far outside of the range
    expected, rows = by_reference(rows, *others), rows.clone()
    errors, codes = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.uint8)
    assert extension.has_kernel("gptq_columns", "cpu")
    gptq_columns(rows, errors, codes, *others)
    for found, wanted in zip((rows, errors, codes), expected):
        assert torch.equal(found, wanted)


@kernel
def test_ties_go_to_the_even_code() -> None:
    rows = torch.tensor([[0.5, 1.5, 2.5, 6.5, -0.5, 7.4, 9.0, -3.0]])
    ones = torch.ones(1, 8)
    errors, codes = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.uint8)
    gptq_columns(rows, errors, codes, torch.eye(1), torch.tensor([0]), ones, ones, 0 * ones, 7)
    assert codes.tolist() == [[0, 2, 2, 6, 0, 7, 7, 0]]


@kernel
def test_nan_stays_in_its_row() -> None:
    rows, *others = random_columns(8, 20)
    rows[3, 5] = torch.nan
    expected, found = by_reference(rows, *others), rows.clone()
    errors, codes = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.uint8)
    gptq_columns(found, errors, codes, *others)
    kept = [i for i in range(20) if i != 5]
    assert all(torch.equal(a[:, kept], b[:, kept]) for a, b in zip((found, errors, codes), expected))
    assert errors[3:, 5].isnan().all()
