"""Outputs of a processor as calibration data."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.data.loading import one, same
from transformers_qaig.data.samples import token_mask


def test_processor_outputs_and_their_padding(processor: Any) -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "pixel_values": torch.zeros(2, 3, 8, 8),
    }
    sample = one([batch], processor)
    assert same(sample, batch)
    assert token_mask(sample).tolist() == [[True] * 4, [True, True, False, False]]
    assert token_mask(sample).dtype == torch.bool
    bare = one([{"input_ids": [5, 6, 7], "pixel_values": np.zeros((1, 3, 8, 8), np.float32)}], processor)
    assert bare["input_ids"].shape == (1, 3)
    assert token_mask(bare).all()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"input_ids": torch.zeros(2, 3, 4)}, r"\[batch, tokens\]"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 4)}, "does not fit"),
        ({"input_ids": torch.ones(1, 3), "meta": object()}, "'meta'"),
    ],
)
def test_a_bad_processor_output_is_named_by_its_index(processor: Any, output: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"sample 0, a processor output.*{message}"):
        one([output], processor)
