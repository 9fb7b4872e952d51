"""Uniform weights are the masks, and depend on nothing before them."""

from types import SimpleNamespace
from typing import Any

import torch

from transformers_qaig.token_weights.uniform import Uniform


def test_real_tokens_count_the_same_and_padding_does_not() -> None:
    masks = [torch.tensor([[True, True, False]]), torch.tensor([[False, True]])]
    sub_block: Any = SimpleNamespace(inputs=[SimpleNamespace(mask=mask) for mask in masks])
    found = Uniform().weigh(sub_block)
    assert [weights.tolist() for weights in found] == [[[1.0, 1.0, 0.0]], [[0.0, 1.0]]]
    assert {weights.dtype for weights in found} == {torch.float32}
    assert Uniform().state() == {}
