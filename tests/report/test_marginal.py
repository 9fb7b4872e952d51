"""What one bit less costs: per layer and part, shared out between distant widths, drawn on a page."""

import pytest

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.allocate import SchemeOption
from transformers_qaig.plan.front import Front, Point
from transformers_qaig.plan.width_costs import by_part, one_bit_less
from transformers_qaig.report.marginal import part_table
from transformers_qaig.report.page.marginal import shades_of
from transformers_qaig.report.page.plan import plan_page


def options(*losses: tuple[int, float]) -> list[SchemeOption]:
    return [SchemeOption(WeightScheme(bits, 64), 8000 * bits, loss) for bits, loss in losses]


OPTIONS = {
    "m.layers.0.experts.0.up": options((2, 0.4), (3, 0.1), (4, 0.03)),
    "m.layers.0.experts.1.up": options((2, 0.8), (3, 0.2), (4, 0.06)),
    "lm_head": options((4, 0.5), (8, 0.1)),
    "m.layers.1.<b>": options((3, 0.1)),
}
PARTS = {"m.layers.0": "blocks", "lm_head": "head"}


def test_a_bit_less_is_the_step_to_the_width_below() -> None:
    experts, head = one_bit_less(OPTIONS, 3, PARTS)
    assert (experts.name, experts.part) == ("experts.*.up", "blocks")
    assert experts.loss == pytest.approx(0.9)
    assert experts.saved == pytest.approx(2000)
    assert head.loss == pytest.approx(0.1)  # a quarter of the step from 8 to 4
    assert [part for part, _, _ in by_part([experts, head])] == ["blocks", "head"]
    assert "blocks" in part_table([experts, head], 3).splitlines()[1]


def test_the_page_escapes_names_and_shades_by_order_of_magnitude() -> None:
    point = Point(10 / 3, 1e6, 0.1, {3: 2})
    layers = one_bit_less({**OPTIONS, "m.layers.1.<b>": options((2, 0.2), (3, 0.1))}, 3, PARTS)
    text = plan_page("<i>", Front([point, Point(4.0, 2e6, 0.01, {4: 2})], 0, []), "fisher", layers, 3)
    assert "One bit less than 3" in text
    assert "loss a MB: 1.0e+02" in text
    assert "<b>" not in text.split("marginal")[1].replace("<b>lm", "")
    assert "<i>:" not in text
    assert ">0</text>" in text  # the number of a block below its column
    assert "<title>3.333 " in text  # with as many digits as somebody reads
    assert shades_of([1e-4, 1e-2, 1.0, 0.0]) == [0, 4, 7, 0]
