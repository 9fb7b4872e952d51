"""Outputs of blocks: which tensor counts, where, and how an error adds up."""

import math

import torch
from torch import Tensor

from transformers_qaig.execution.block_outputs import OutputError, is_finite_where

MASK = torch.tensor([[True, True, False]])
WANTED = torch.tensor([[[3.0, 4.0], [0.0, 5.0], [9.0, 9.0]]])


def with_token(token: int, *values: float) -> Tensor:
    changed = WANTED.clone()
    changed[0, token] = torch.tensor(values)
    return changed


def test_the_error_is_that_of_real_tokens_over_their_power() -> None:
    error = OutputError()
    assert error.add((with_token(0, 3.0, 6.0), "caches"), WANTED, MASK)
    assert (error.error, error.power) == (4.0, 50.0)
    other = OutputError()
    assert other.add(with_token(2, 0.0, 0.0), WANTED, MASK)  # padding
    error.join(other)
    assert error.value == 4.0 / 100.0


def test_an_error_that_is_not_finite_adds_nothing() -> None:
    error = OutputError()
    assert not error.add(with_token(1, math.nan, 0.0), WANTED, MASK)
    assert error == OutputError()
    assert error.add(with_token(2, math.inf, 0.0), WANTED, MASK)
    assert error.value == 0.0


def test_without_power_the_error_is_infinite_or_unknown() -> None:
    assert math.isnan(OutputError().value)
    assert OutputError(error=1.0).value == math.inf


def test_finite_is_asked_of_real_tokens_alone() -> None:
    assert is_finite_where(MASK, with_token(2, math.nan, 0.0))
    assert not is_finite_where(MASK, with_token(1, math.nan, 0.0))
