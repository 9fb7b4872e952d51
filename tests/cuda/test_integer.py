"""The CUDA kernels for many rows of 8-bit activations (csrc/cuda/integer.h) on the emulator.

Sums of integers are exact; what is rounded is, in float32, the product of each group's sum and its scale, their sum, and
y in its dtype. So results must be the float64 product of the rounded activations and the dequantized weight, rounded
once to the dtype of y, up to 1e-6 of ‖y‖ before that: `ROUNDING`.
"""

import itertools

import pytest
import torch
from torch import Tensor

from tests.cuda import emulated
from tests.cuda.emulated import Weight, make_weight, random_weight
from tests.cuda.test_kernels import BITS, DTYPES, ROUNDING, error, exact, on_disk
from transformers_qaig.nn import reference
from transformers_qaig.nn.hadamard import Rotation, rotate

pytestmark = pytest.mark.skipif(emulated.COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def emulator():
    emulator = emulated.build()
    yield emulator
    emulator.set_processors(3)


def check(emulator, x: Tensor, weights: list[Weight], launches: int = 1) -> list[Tensor]:
    results = emulator.decode(x, weights, 8, launches, kernel="integer")
    for w, y in zip(weights, results, strict=True):
        assert error(y, exact(w, x, 8)) < ROUNDING[x.dtype]
    return results


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sym", [False, True])
def test_every_width(emulator, bits, dtype, sym):
    """Groups of one unit, of two, of three (which end within a tile of slots) and one for all; whole and ragged tiles
    of rows.
    """
    for number, (group_size, rows) in enumerate([(32, 40), (64, 64), (96, 17), (-1, 70), (32, 1)]):
        emulator.seed(number)
        w = random_weight(bits, 130 if rows < 64 else 64, 192, group_size, sym, dtype, bias=dtype)
        check(emulator, torch.randn(rows, 192).to(dtype), [w])
