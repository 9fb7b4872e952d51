"""Sizes and times as people write them."""

import pytest

from transformers_qaig.utils.readable import readable_size, readable_time


@pytest.mark.parametrize(
    ("bits", "text"), [(8, "1 bytes"), (8e3, "1 kB"), (109_040_000, "13.63 MB"), (8e12, "1000 GB")]
)
def test_sizes_are_readable(bits: float, text: str) -> None:
    assert readable_size(bits) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (59.4, "59.4 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min")]
)
def test_times_are_readable(seconds: float, text: str) -> None:
    assert readable_time(seconds) == text
