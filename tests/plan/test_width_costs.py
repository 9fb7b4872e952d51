"""What widths cost layers: experts of a stack add up, parts are told by the longest name."""

import pytest

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.allocate import SchemeOption
from transformers_qaig.plan.width_costs import OTHER, OneBitLess, WidthCost, by_part, costs_by_layer, one_bit_less


def options(*choices: tuple[int, int, float]) -> list[SchemeOption]:
    return [SchemeOption(WeightScheme(bits, 32), size, cost) for bits, size, cost in choices]


EXPERTS = {
    "m.layers.0.experts.0.up": options((4, 80, 0.5), (2, 40, 2.0)),
    "m.layers.0.experts.1.up": options((2, 40, 1.0), (4, 80, 0.25)),
    "m.layers.1.up": options((2, 400, 8.0), (4, 800, 2.0), (8, 1600, 1.0)),
    "m.head": options((8, 80, 0.1)),
}


def test_the_experts_of_a_stack_add_up_and_widths_rise() -> None:
    found = costs_by_layer(EXPERTS)
    assert found[("m.layers.0", "experts.*.up")] == [WidthCost(2, 10.0, 3.0), WidthCost(4, 20.0, 0.75)]
    assert [cost.bits for cost in found[("m.layers.1", "up")]] == [2, 4, 8]


@pytest.mark.parametrize(("bits", "loss", "saved"), [(3, 3.0, 25.0), (4, 3.0, 25.0), (8, 0.25, 25.0)])
def test_a_bit_is_its_share_of_the_step_to_the_next_width(bits: int, loss: float, saved: float) -> None:
    _, layer = one_bit_less(EXPERTS, bits, {"m.layers": "blocks", "m.layers.1": "last"})
    assert (layer.block, layer.name, layer.part, layer.loss, layer.saved) == ("m.layers.1", "up", "last", loss, saved)


def test_a_layer_of_one_width_is_left_out_and_an_unknown_part_is_other() -> None:
    found = one_bit_less(EXPERTS, 4, {"m.layers.11": "far", "m.lay": "cut"})
    assert [layer.block for layer in found] == ["m.layers.0", "m.layers.1"]
    assert {layer.part for layer in found} == {OTHER}


def test_parts_add_up_and_the_dearest_is_first() -> None:
    layers = [OneBitLess("b", "n", part, loss, 2e6) for part, loss in (("a", 1.0), ("b", 3.0), ("a", 1.5))]
    assert by_part(layers) == [("b", 3.0, 2e6), ("a", 2.5, 4e6)]
    assert layers[1].rate == 1.5
    assert OneBitLess("b", "n", "a", 1.0, 0.0).rate == 0.0
