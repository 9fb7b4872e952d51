"""Where tests draw random data from: `QAIG_TEST_SEED=1` (2, 3, …) draws all of it anew.

A test that needs particular data, because it compares with recorded figures, seeds by itself and says why.
"""

import os
import random

import numpy as np
import torch

_DRAWS = int(os.environ.get("QAIG_TEST_SEED") or 0)


def seed(number: int = 0) -> int:
    """The test's own `number`, far from the numbers of other draws."""
    return number + 1_000_003 * _DRAWS


def generator(number: int = 0) -> torch.Generator:
    """Of torch."""
    return torch.Generator().manual_seed(seed(number))


def rng(number: int = 0) -> np.random.Generator:
    """Of numpy."""
    return np.random.default_rng(seed(number))


def python_rng(number: int = 0) -> random.Random:
    """Of Python."""
    return random.Random(seed(number))
