"""The front of plans: sizes rise, losses fall, and uniform plans are those of one width."""

import pytest

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.allocate import SchemeOption, allocate, reachable
from transformers_qaig.plan.coverage import BLOCKS, Coverage, PartSize
from transformers_qaig.plan.front import Point, even_budgets, front_of

WIDTHS = (2, 3, 4)
OPTIONS = {
    f"w{i}": [SchemeOption(WeightScheme(b, 32), 100 * b, loss * 4.0**-b) for b in WIDTHS]
    for i, loss in enumerate((1, 9))
}
COVERAGE = Coverage(packed=200, total=200, parts={BLOCKS: PartSize(0, 80)})


def test_a_point_counts_the_rest_of_the_model_in_bytes_and_only_packed_weights_in_bits() -> None:
    point = Point.of(allocate(OPTIONS, 500.0), COVERAGE)
    assert point.widths == {2: 1, 3: 1}
    assert point.bits == 500 / 200
    assert point.size == (500 + 80) / 8
    assert point.loss == pytest.approx(4.0**-2 + 9 * 4.0**-3)


def test_points_rise_and_each_is_there_once() -> None:
    least, most = reachable(OPTIONS)
    assert (least, most) == (400, 800)
    found = front_of(OPTIONS, COVERAGE, even_budgets(least, most, 41), ())
    sizes, losses = [point.bits for point in found.points], [point.loss for point in found.points]
    assert sizes == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert losses == sorted(losses, reverse=True)
    assert 0 < found.knee < len(sizes)
    assert [point.widths for point in found.uniform] == [{bits: 2} for bits in WIDTHS]
    assert [point.bits for point in found.uniform] == [2.0, 3.0, 4.0]


def test_a_weight_without_a_width_takes_its_last_option_in_a_uniform_plan() -> None:
    options = {**OPTIONS, "fixed": [SchemeOption(WeightScheme(8, 32), 800, 0.0)]}
    found = front_of(options, COVERAGE, [reachable(options)[0] + 0.5], ())
    assert [point.widths for point in found.uniform] == [{2: 2, 8: 1}, {3: 2, 8: 1}, {4: 2, 8: 1}, {4: 2, 8: 1}]


def test_budgets_are_even_and_hold_the_smallest_plan() -> None:
    assert even_budgets(400, 800, 3) == [400.5, 600.5, 800.5]
