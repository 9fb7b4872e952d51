"""Grids in other formats: large groups as several small ones, zero points as codes, scales in float16."""

import pytest
import torch

from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, pack_zero_point
from transformers_qaig.formats.reference import Weight
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.integrations.exporting.grids import (
    LARGEST_ERROR,
    error_in_float16,
    refuse_indivisible_groups,
    repeated,
    split_group,
    zero_points,
)
from transformers_qaig.integrations.exporting.saved_model import PackedWeight


def packed(group_size: int, in_features: int = 768, path: str = "fc") -> PackedWeight:
    return PackedWeight(path, path, WeightScheme(4, group_size), 8, in_features, "linear")


@pytest.mark.parametrize(
    ("group_size", "in_features", "expected"), [(128, 768, 128), (96, 768, 32), (-1, 320, 64), (48, 768, None)]
)
def test_a_group_is_split_into_the_largest_that_divides_it(
    group_size: int, in_features: int, expected: int | None
) -> None:
    weight = packed(group_size, in_features)
    assert split_group(weight, (32, 64, 128)) == expected
    assert [refusal.paths for refusal in refuse_indivisible_groups([weight], (32, 64, 128))] == (
        [] if expected else [("fc",)]
    )


def test_parts_of_a_group_have_its_scale() -> None:
    scales = torch.arange(12.0).reshape(4, 3)
    found = repeated(scales, packed(256), 64)
    assert found.shape == (4, 12)
    assert all(torch.equal(found[:, group], scales[:, group // 4]) for group in range(12))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_zero_points_are_codes_and_the_middle_one_where_none_are_stored(bits: int) -> None:
    zeros = torch.randint(0, 2**bits, (40, 2), dtype=torch.uint8)
    weight = Weight(
        torch.empty(0), torch.ones(40, 2), pack_zero_point(zeros, bits), 40, 64, bits, 32, CHECKPOINT_LAYOUT
    )
    assert torch.equal(zero_points(weight), zeros)
    assert zero_points(weight._replace(zero=None)).unique().tolist() == [2 ** (bits - 1)]


def test_the_error_of_float16_scales_grows_with_the_codes_and_where_float16_ends() -> None:
    assert error_in_float16(torch.tensor([0.5, 3.0]), 8) == 0
    scale = torch.tensor([1 + 2**-11])  # halfway between two of float16
    assert error_in_float16(scale, 4) == pytest.approx(15 * 2**-11, rel=1e-3)
    assert error_in_float16(scale, 8) == pytest.approx(255 * 2**-11, rel=1e-3)
    assert error_in_float16(torch.tensor([1e5]), 2) == float("inf")
    assert error_in_float16(torch.tensor([1e-8]), 2) > LARGEST_ERROR
