"""GPTQ's inner loop on the emulator: the kernel, the operator of the library, and that of NVRTC."""

import ctypes

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.gptq_cases import Columns, by_reference, random_columns, same
from tools.emulator.compilation import COMPILER
from transformers_qaig.kernels.cuda import interface
from transformers_qaig.rounding import gptq
from transformers_qaig.rounding.hessian import Hessian
from transformers_qaig.rounding.quant_grid import minmax_grid

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 127), (7, 128), (18, 129), (31, 40), (32, 300)])
def test_the_kernel(emulator, count, size, bits, column_major):
    arguments = random_columns(count, size, bits=bits, column_major=column_major)
    assert same(emulator.gptq_columns(*arguments), by_reference(*arguments))


def test_nan_stays_in_its_row(emulator):
    arguments = random_columns(8, 20)
    arguments[0][3, 5] = torch.nan
    actual, expected = emulator.gptq_columns(*arguments), by_reference(*arguments)
    others = [i for i in range(20) if i != 5]
    assert same(tuple(t[:, others] for t in actual), tuple(t[:, others] for t in expected))
    assert actual[1][3:, 5].isnan().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("count", 0), ("count", 33), ("size", 0), ("group_count", 0), ("max_code", 256), ("factor_row", 0)],
)
def test_bad_arguments_are_not_launched(emulator, field, value):
    argument = interface.GptqColumns(*[8] * 8, 10, 3, 1, 3, 2, 7)
    setattr(argument, field, value)
    assert emulator.library.qaig_cuda_gptq_columns(ctypes.byref(argument), None) == 1


def call(operator, arguments: Columns) -> tuple[Tensor, Tensor, Tensor]:
    rows = arguments[0].clone()
    errors, codes = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.uint8)
    operator(rows, errors, codes, *arguments[1:])
    return rows, errors, codes


@pytest.fixture(params=["library", "NVRTC"])
def operator(request):
    if request.param == "NVRTC":
        return request.getfixturevalue("machine").operators.gptq_columns
    request.getfixturevalue("operators")
    return torch.ops.qaig_emulated.gptq_columns


@pytest.mark.parametrize("column_major", [False, True])
def test_the_operators(operator, column_major):
    arguments = random_columns(11, 70, column_major=column_major)
    assert same(call(operator, arguments), by_reference(*arguments))


def test_nothing_to_round(operator):
    call(operator, random_columns(4, 0))


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.randn(33, 70), "rows must be 1 to 32"),
        (1, torch.eye(10), "factor must "),
        (1, torch.ones(1, 11).expand(11, 11), "factor at least not expanded"),
        (2, torch.zeros(11, dtype=torch.int32), "groups must "),
        (3, torch.ones(3, 71), "step must |scale must "),
        (4, torch.ones(3, 70).double(), "scale must "),
        (5, torch.ones(70, 3).T, "zero must be contiguous"),
        (6, 256, "max_code"),
    ],
)
def test_arguments_that_do_not_fit(operator, index, wrong, message):
    arguments = list(random_columns(11, 70))
    arguments[index] = wrong
    with pytest.raises((RuntimeError, ValueError), match=message):
        call(operator, tuple(arguments))


def test_gptq_with_the_kernel(operators, monkeypatch):
    """The same codes as on the CPU."""
    inputs, weight = torch.randn(400, 200) * torch.rand(200), torch.randn(30, 200) * 0.1
    hessian = Hessian.of(inputs.T @ inputs)
    shared = {"bits": 3, "group_size": 40, "sym": False, "storage_dtype": torch.bfloat16}
    grids = [minmax_grid(weight, shrink=shrink, **shared) for shrink in (1.0, 0.9, 0.8)]
    expected = gptq.gptq_on_best_grid(weight, hessian, grids)
    counts = []

    def kernel(rows, *others):
        counts.append(len(rows))
        torch.ops.qaig_emulated.gptq_columns(rows, *others)

    monkeypatch.setattr(gptq, "gptq_columns", kernel)
    actual = gptq.gptq_on_best_grid(weight, hessian, grids)
    assert counts == [32] * 6 + [8]
    differ = (actual.codes != expected.codes).any(1)
    assert int(differ.sum()) <= 1  # a weight on a tie may go the other way, and take its row along
    torch.testing.assert_close(actual.source[~differ], expected.source[~differ], rtol=1e-4, atol=1e-5)
