"""Group sizes that fit a width, and the bits that a scheme stores."""

import pytest

from transformers_qaig.formats.scheme import WeightScheme, fit_group_size


@pytest.mark.parametrize(
    ("width", "wanted", "used"),
    [
        (4096, 128, 128),
        (576, 128, 96),  # 576 = 4.5 * 128
        (576, 64, 64),
        (3420, 128, 114),
        (4304, 64, -1),  # 4304 = 16 * 269
        (64, 128, -1),
        (128, 128, -1),
        (4096, -1, -1),
    ],
)
def test_group_size_fits_the_width(width: int, wanted: int, used: int) -> None:
    assert fit_group_size(width, wanted) == used


def test_stored_bits_counts_scales_and_zero_points() -> None:
    assert WeightScheme(4, 128).stored_bits(256, 1024, 16) == 256 * 1024 * 4 + 256 * 8 * (16 + 4)
    assert WeightScheme(4, 128, sym=True).stored_bits(256, 1024, 16) == 256 * 1024 * 4 + 256 * 8 * 16
