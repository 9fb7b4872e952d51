"""What a plan covers: shares, sizes, and the error where it is too little."""

import pytest

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.allocate import SchemeOption
from transformers_qaig.plan.coverage import BLOCKS, Coverage, OutsideWeight, PartSize
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
    assert (found.packed_fraction, found.bits_per_weight) == (0.9, 3.25)


def test_nothing_packed_has_no_share_and_no_bits() -> None:
    assert (Coverage().packed_fraction, Coverage().bits_per_weight) == (0.0, 0.0)


def test_weights_that_the_user_left_out_are_not_asked_for() -> None:
    coverage(excluded=200).check_minimum(1.0)
    coverage().check_minimum(0.9)
    with pytest.raises(SettingError, match=r"Only 90.0% of the 2,000 weights .* asks for 91.0%"):
        coverage().check_minimum(0.91)


def test_the_largest_weights_that_are_left_out_are_listed_and_the_others_counted() -> None:
    skipped = {f"w{size}": (size, "a router") for size in range(10)}
    with pytest.raises(SettingError) as error:
        coverage(skipped=skipped).check_minimum(1.0)
    lines = str(error.value).splitlines()
    assert lines[1:9] == [f"  w{size}: {size} weights, a router" for size in range(9, 1, -1)]
    assert lines[9] == "  and 2 more"


def test_no_weight_at_all_is_too_little() -> None:
    with pytest.raises(SettingError, match=r"Only 0.0%"):
        Coverage().check_minimum(0.0)


def test_a_choice_fills_in_the_parts_outside_the_blocks() -> None:
    three, eight = WeightScheme(3, 32), WeightScheme(8, 32)
    choices = {
        "tower.a": OutsideWeight("tower", 100),
        "tower.b": OutsideWeight("tower", 50),
        "embed": OutsideWeight("embed", 200, also="head"),
    }
    before = coverage(
        stored_bits=0.0,
        parts={BLOCKS: PartSize(32_000, 500), "tower": PartSize(2_400, 64), "embed": PartSize(3_200, 0)},
        outside_choices=choices,
        outside_plan={"projector": three},
    )
    chosen = {
        "block": SchemeOption(three, 6_000, 0.1, 1_800),
        "tower.a": SchemeOption(eight, 900, 0.1, 100),
        "tower.b": SchemeOption(None, 800, 0.0, 50),
        "embed": SchemeOption(three, 700, 0.1, 200),
    }
    after = before.with_choice(chosen)
    assert after.stored_bits == 6_000
    assert after.sizes == {
        BLOCKS: PartSize(32_000, 6_500), "embed": PartSize(3_200, 700), "tower": PartSize(2_400, 64 + 900 + 800)
    }  # fmt: skip
    assert after.unpacked == {"tower": 50}
    assert after.outside_plan == {"projector": three, "tower.a": eight, "embed": three, "head": three}
    plan = before.plan_of({path: option.scheme for path, option in chosen.items() if option.scheme is not None})
    assert plan == {"block": three, **after.outside_plan}
    assert before.to_choose == 1_800 + 350
    assert before.other_bits == 564  # the coverage before is left as it was


def test_the_old_name_of_the_fraction_warns_and_works() -> None:
    with pytest.warns(FutureWarning, match=r"`Coverage.share` ends .* Use `packed_fraction`"):
        assert coverage().share == 0.9
