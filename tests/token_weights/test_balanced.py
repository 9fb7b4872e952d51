"""Balanced token weights, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformers_qaig.token_weights.balanced import balanced
from transformers_qaig.token_weights.data import WeightingData


def weights(mask: list[int], picture: list[int]) -> Tensor:
    block: Any = nn.Identity()
    real, pictures = (torch.tensor([values]).bool() for values in (mask, picture))
    return balanced(WeightingData(block, [block], None, [real], [pictures], None))[block][0]  # type: ignore[arg-type]


def test_pictures_and_the_others_have_the_same_sum_and_a_mean_of_one() -> None:
    found = weights([1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1])
    expected = [5 / 6, 5 / 6, 5 / 6, 5 / 4, 5 / 4, 0]
    assert found[0].tolist() == pytest.approx(expected)
    assert float(found[0, :3].sum()) == pytest.approx(float(found[0, 3:].sum()))


@pytest.mark.parametrize("picture", [[0, 0, 0], [1, 1, 1]])
def test_with_one_kind_alone_every_real_token_weighs_one(picture: list[int]) -> None:
    assert weights([1, 1, 0], picture).tolist() == [[1, 1, 0]]
