"""MBQ's token weights, by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformers_qaig.token_weights.mbq import mbq

PICTURES = [torch.tensor([[True, True, False, False, False]])] * 2
ANSWERS = [torch.tensor([[False, False, False, True, True]])] * 2


def weights(*gradients: list[list[float]]) -> list[list[float]]:
    """Of the first sample in each block, from sample → block → gradient at each token."""
    blocks = [nn.Identity() for _ in gradients[0]]
    sizes: list[list[Tensor]] = [[torch.tensor([row] if row else []) for row in sample] for sample in gradients]
    data: Any = SimpleNamespace(blocks=blocks, pictures=PICTURES, answer_masks=ANSWERS, gradients=lambda: sizes)
    found = mbq(data)
    return [found[block][0][0].tolist() for block in blocks]


def test_pictures_weigh_by_the_ratio_of_mean_gradients_and_text_nothing() -> None:
    one, other = [1.0, 3.0, 99.0, 8.0, 8.0], [5.0, 7.0, 99.0, 8.0, 8.0]
    assert weights([one], [other])[0] == pytest.approx([0.5, 0.5, 0, 1, 1])


def test_a_ratio_is_at_least_the_median_over_blocks() -> None:
    rows = [[ratio, ratio, 0.0, 1.0, 1.0] for ratio in (0.1, 0.4, 0.9)]
    assert [row[0] for row in weights(rows, rows)] == pytest.approx([0.4, 0.4, 0.9])


def test_a_sample_that_is_left_out_does_not_count() -> None:
    assert weights([[2.0, 2.0, 0.0, 8.0, 8.0]], [[]])[0] == pytest.approx([0.25, 0.25, 0, 1, 1])


def test_without_a_gradient_at_answers_pictures_weigh_one() -> None:
    assert weights([[2.0, 2.0, 0.0, 0.0, 0.0]], [[]])[0] == [1, 1, 0, 1, 1]
