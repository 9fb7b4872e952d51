"""`CalibrationData`: which tokens of which samples count."""

import torch

from transformers_qaig.data.calibration_data import CalibrationData

PICTURE = 7


def data() -> CalibrationData:
    ids = torch.tensor([[1, PICTURE, 3, 0]])
    return CalibrationData.of([{"input_ids": ids, "attention_mask": ids != 0}, {"input_ids": ids[:, 2:]}])


def test_without_answers_every_real_token_is_one() -> None:
    assert [mask.tolist() for mask in data().answer_masks] == [[[True, True, True, False]], [[True, True]]]


def test_samples_that_are_left_out_have_no_used_tokens() -> None:
    given = data()
    given.exclusions.add({0: "its input"}, "Mend it.")
    assert [mask.shape for mask in given.used_masks] == [(1, 2)]


def test_pictures_are_found_by_their_tokens() -> None:
    assert [mask.tolist() for mask in data().picture_masks([PICTURE])] == [[[False, True, False, False]], [[False] * 2]]
