"""Samples with images and videos, where a model could not tell their tokens apart."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from transformers_qaig.data.mixed import check_placeholders
from transformers_qaig.execution.exclusions import Sample

VIDEO = 7


def model_with(token: object) -> nn.Module:
    model = nn.Module()
    model.config = SimpleNamespace(video_token_id=token)
    return model


def sample_of(*names: str, ids: tuple[int, ...] = (1, 2)) -> Sample:
    pixels = {name: torch.zeros(1, 3) for name in names}
    return Sample({"input_ids": torch.tensor([ids]), **pixels}, index=12)


def test_images_and_videos_under_one_token_are_refused_by_the_samples_index() -> None:
    mixed = sample_of("pixel_values", "pixel_values_videos")
    with pytest.raises(ValueError, match=r"sample 12 has images and videos, and Module marks both.*conversations of"):
        check_placeholders(model_with(VIDEO), [sample_of("pixel_values"), mixed])


@pytest.mark.parametrize(
    ("token", "sample"),
    [
        (VIDEO, sample_of("pixel_values", "pixel_values_videos", ids=(1, VIDEO))),
        (VIDEO, sample_of("pixel_values")),
        (VIDEO, sample_of("pixel_values_videos")),
        (None, sample_of("pixel_values", "pixel_values_videos")),
    ],
)
def test_what_a_model_can_tell_apart_is_taken(token: object, sample: Sample) -> None:
    check_placeholders(model_with(token), [sample])


def test_a_model_without_a_configuration_is_taken() -> None:
    check_placeholders(nn.Module(), [sample_of("pixel_values", "pixel_values_videos")])
