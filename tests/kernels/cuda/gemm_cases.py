"""Products that the kernels for many rows are tried on, of 16-bit floats and of integers alike."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests import seeds
from tools.emulator.emulated import Emulator
from tools.emulator.weights import Weight, random_weight

RAGGED = [(1, 32, -1), (17, 114, 57), (200, 36, 36), (31, 1, -1), (50, 1100, 275), (129, 40, -1)]
"""Output features, input features and group size, of which none fills a tile."""


def check_order_does_not_matter(
    emulator: Emulator, run: Callable[[], list[Tensor]], processors: int, orders: int
) -> None:
    """Blocks and threads run in any order, and `run` launches twice: results are equal to the bit."""
    emulator.set_processors(processors)
    results = []
    for order in range(orders):
        emulator.seed(seeds.seed(order))
        results += run()
    assert all(torch.equal(result, results[0]) for result in results)


def every_width(emulator: Emulator, bits: int, dtype: torch.dtype, sym: bool) -> Iterator[tuple[Tensor, Weight]]:
    """Groups of one unit, of two, of three (which end within a tile of slots) and one for all; whole and ragged tiles
    of rows.
    """
    for number, (group_size, rows) in enumerate([(32, 40), (64, 64), (96, 17), (-1, 70), (32, 1)]):
        emulator.seed(seeds.seed(number))
        w = random_weight(bits, 130 if rows < 64 else 64, 192, group_size, sym, dtype, bias=dtype)
        yield torch.randn(rows, 192).to(dtype), w


def sweep(emulator: Emulator, bits: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Weight]]:
    """Groups, symmetry, rows, processors and orders of execution."""
    shapes = [(64, 64), (1, 128), (200, 384), (577, 256), (96, 1152)]
    for number, ((n, k), group_size, sym, rows) in enumerate(
        itertools.product(shapes, (32, 64, 128, -1), (False, True), (2, 31, 33, 64, 150))
    ):
        if k % group_size or number % 2:
            continue
        emulator.seed(seeds.seed(number))
        emulator.set_processors(1 + number % 5)
        w = random_weight(bits, n, k, group_size, sym, dtype, bias=dtype if number % 3 else None)
        yield torch.randn(rows, k).to(dtype), w
