"""A hash tells apart what differs in a name, a dtype, a shape or a value, and nothing else."""

import pytest
import torch
from torch import Tensor

from transformers_qaig.utils.hashing import digest

X = torch.arange(6, dtype=torch.float32)


def test_order_of_keys_and_strides_do_not_count() -> None:
    wide = torch.stack([X, X], 1)
    assert digest([{"a": X, "b": X + 1}]) == digest([{"b": X + 1, "a": wide[:, 0]}])


@pytest.mark.parametrize(
    "other",
    [
        [{"b": X}],
        [{"a": X.bfloat16()}],
        [{"a": X.reshape(2, 3)}],
        [{"a": X.flip(0)}],
        [{"a": X}, {"a": X}],
        [{"a": X, "b": None}],
    ],
    ids=["name", "dtype", "shape", "value", "length", "a key without a tensor"],
)
def test_everything_else_counts(other: list[dict[str, Tensor | None]]) -> None:
    assert digest(other) != digest([{"a": X}])


def test_it_says_so_after_each_tensor() -> None:
    calls: list[None] = []
    digest([{"a": X, "b": 1}, {"a": X}], lambda: calls.append(None))
    assert len(calls) == 2
