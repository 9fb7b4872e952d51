"""What a plan covers: shares, sizes, and the error where it is too little."""

import pytest

from transformers_qaig.plan.coverage import BLOCKS, Coverage, PartSize
from transformers_qaig.utils.errors import SettingError


def coverage(**changes: object) -> Coverage:
    parts = {"head": PartSize(16_000, 8_000), BLOCKS: PartSize(32_000, 500)}
    return Coverage(**{"packed": 1_800, "total": 2_000, "stored_bits": 1_800 * 3.25, "parts": parts, **changes})


def test_the_blocks_size_holds_their_packed_weights_and_is_first() -> None:
    found = coverage()
    assert list(found.sizes) == [BLOCKS, "head"]
    assert found.sizes[BLOCKS] == PartSize(32_000, 500 + 5_850)
    assert found.whole == PartSize(48_000, 8_000 + 500 + 5_850)
    assert found.other_bits == 8_500
    assert (found.share, found.bits_per_weight) == (0.9, 3.25)


def test_nothing_packed_has_no_share_and_no_bits() -> None:
    assert (Coverage().share, Coverage().bits_per_weight) == (0.0, 0.0)


def test_weights_that_the_user_left_out_are_not_asked_for() -> None:
    coverage(excluded=200).require(1.0)
    coverage().require(0.9)
    with pytest.raises(SettingError, match=r"Only 90.0% of the 2,000 weights .* asks for 91.0%"):
        coverage().require(0.91)


def test_the_largest_weights_that_are_left_out_are_listed_and_the_others_counted() -> None:
    skipped = {f"w{size}": (size, "a router") for size in range(10)}
    with pytest.raises(SettingError) as error:
        coverage(skipped=skipped).require(1.0)
    lines = str(error.value).splitlines()
    assert lines[1:9] == [f"  w{size}: {size} weights, a router" for size in range(9, 1, -1)]
    assert lines[9] == "  and 2 more"


def test_no_weight_at_all_is_too_little() -> None:
    with pytest.raises(SettingError, match=r"Only 0.0%"):
        Coverage().require(0.0)
