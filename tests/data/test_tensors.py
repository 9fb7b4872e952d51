"""A processor's output is checked before anything reads it, and the entry that does not fit is named."""

from typing import Any

import numpy as np
import pytest
import torch

from transformers_qaig.data.model_inputs import ModelInputs
from transformers_qaig.data.preview import preview
from transformers_qaig.data.samples import load_samples
from transformers_qaig.data.tensors import as_tensors, pixels_as

IDS = torch.tensor([[5, 6, 7]])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"input_ids": torch.tensor([[5, -1, 7]])}, "'input_ids' holds -1"),
        ({"input_ids": torch.tensor([[5, 100, 7]])}, "'input_ids' holds 100, and the model's last token id is 99"),
        ({"input_ids": torch.tensor([[5, 2**40, 7]])}, "'input_ids' holds 1099511627776"),
        ({"input_ids": IDS.double()}, "'input_ids' must hold integers, not torch.float64"),
        ({"input_ids": IDS.bool()}, "'input_ids' must hold integers, not torch.bool"),
        ({"input_ids": [["a", "b"]]}, "'input_ids' .list. cannot be made a tensor"),
        ({"input_ids": [[1, 2], [3]]}, "'input_ids' .list. cannot be made a tensor"),
        ({"input_ids": []}, "'input_ids' must be .* not empty"),
        ({"input_ids": IDS[None]}, r"'input_ids' must be \[batch, tokens\]"),
        ({"input_ids": IDS.to_sparse()}, "'input_ids' must be a plain dense tensor"),
        ({"input_ids": np.array([[None, 1]])}, "'input_ids' .ndarray. cannot be made a tensor"),
        ({"attention_mask": torch.ones(1, 4)}, r"'attention_mask' \[1, 4\] does not fit 'input_ids' \[1, 3\]"),
        ({"attention_mask": torch.ones(3)}, "'attention_mask' .* does not fit"),
        ({"attention_mask": torch.zeros(1, 3)}, "'attention_mask' leaves no token in row 0"),
        ({"attention_mask": torch.tensor([[0.0, -torch.inf, 0]])}, "'attention_mask' must hold 1 at tokens"),
        ({"attention_mask": torch.full((1, 3), torch.nan)}, "'attention_mask' must hold 1 at tokens"),
        ({"labels": torch.ones(1, 2).long()}, "'labels' .* does not fit"),
        ({"labels": torch.ones(1, 3)}, "'labels' must hold token ids or -100"),
        ({"labels": torch.tensor([[5, 100, 7]])}, "'labels' holds 100, and the model's last token id is 99"),
        ({"labels": torch.tensor([[5, -1, 7]])}, "'labels' holds -1: give a token id, or -100"),
        ({"token_type_ids": torch.ones(1, 2).long()}, "'token_type_ids' .* does not fit"),
    ],
)
def test_an_entry_that_does_not_fit_is_named(entries: dict[str, Any], message: str) -> None:
    good, bad = {"input_ids": IDS}, {"input_ids": IDS, **entries}
    with pytest.raises(ValueError, match=f"calibration sample 1, a processor output, cannot be used: .*{message}"):
        load_samples([good, bad], None, num_samples=2, seed=0, inputs=ModelInputs(has_images=False, vocab_size=100))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_every_integer_dtype_will_do(dtype: torch.dtype) -> None:
    sample = as_tensors({"input_ids": IDS.to(dtype), "attention_mask": IDS.bool()})
    assert torch.equal(sample["input_ids"], IDS)
    assert sample["input_ids"].dtype == torch.int64


def test_the_batch_axis_is_added_to_everything_of_a_token() -> None:
    names = ("input_ids", "attention_mask", "labels", "token_type_ids")
    sample = as_tensors({name: [1, 1, 1] for name in names} | {"image_grid_thw": [1, 2, 2]})
    assert [sample[name].shape for name in names] == [(1, 3)] * 4
    assert sample["image_grid_thw"].shape == (3,)


def test_the_preview_never_fails() -> None:
    class Failing:
        def decode(self, ids: list[int]) -> str:
            raise OverflowError("out of range integral type conversion attempted")

    assert preview(Failing(), {"input_ids": IDS}) == preview(None, {"input_ids": IDS}) == "[5, 6, 7]"
    assert len(preview(None, {"input_ids": torch.arange(9999)[None]})) < 2100


def test_pixels_are_cast_and_a_row_of_numbers_is_not() -> None:
    """As the seconds between a video's frames, which models compute positions from."""
    assert pixels_as(torch.rand(2, 3), torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(pixels_as(torch.tensor([2 / 3]), torch.bfloat16), torch.tensor([2 / 3]))
    assert pixels_as(torch.ones(2, 3, dtype=torch.long), torch.bfloat16).dtype == torch.long
