"""The tokens that choose a damping: real ones that are no picture's; all real ones where none is left."""

import torch
from torch import nn

from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.token_weights.data import WeightingData
from transformers_qaig.token_weights.text_tokens import text_alone


def test_pictures_and_padding_do_not_count() -> None:
    masks = [torch.tensor([[True, True, True, False]]), torch.tensor([[True, True, False, False]])]
    pictures = [torch.tensor([[True, False, False, True]]), torch.tensor([[True, True, True, False]])]
    blocks = [nn.Identity(), nn.Identity()]
    data = WeightingData(nn.Identity(), blocks, CalibrationData.of([], []), masks, pictures, None)
    found = text_alone(data)
    assert set(found) == set(blocks)
    for block in blocks:
        assert found[block][0].tolist() == [[0.0, 1.0, 1.0, 0.0]]
        assert set(found[block]) == {0}  # the other has no text: all its real tokens count
