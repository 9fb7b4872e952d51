"""Samples that are left out: how many may be, what is looked at, and that nothing else changes."""

import logging

import pytest
import torch
from torch import Tensor

from transformers_qaig.execution.block_outputs import check_inputs_of
from transformers_qaig.execution.exclusions import Exclusions, Sample, check_inputs, numbered
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs
from transformers_qaig.execution.paused_forward import PausedForwards

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("bad", "total"), [(1, 2), (1, 12), (1, 32), (6, 128)])
def test_a_few_are_left_out_with_a_warning_for_each(bad: int, total: int, caplog: pytest.LogCaptureFixture) -> None:
    exclusions = Exclusions(total)
    for index in range(bad):
        exclusions.add({index + 1: "its input 'x'"}, "")
        exclusions.add({index + 1: "somewhere later"}, "")
    lines = [f"Calibration sample {index + 1} is left out: NaN or Inf in its input 'x'." for index in range(bad)]
    assert [record.getMessage() for record in caplog.records] == lines


@pytest.mark.parametrize(("bad", "total"), [(1, 1), (2, 2), (2, 12), (7, 128)])
def test_more_are_an_error_that_says_what_to_do(bad: int, total: int) -> None:
    found = dict.fromkeys(range(bad), "its input 'x'")
    with pytest.raises(ValueError, match=rf"in {bad} of {total} calibration samples \(sample 0, .* Mend them\."):
        Exclusions(total).add(found, "Mend them.")


def test_samples_are_listed_as_the_user_numbers_them(caplog: pytest.LogCaptureFixture) -> None:
    """Several processes find them in another order: each its own first."""
    exclusions = Exclusions(128)
    exclusions.add({9: "x", 3: "x", 6: "x"}, "")
    assert [record.getMessage().split()[2] for record in caplog.records] == ["3", "6", "9"]
    with pytest.raises(ValueError, match="sample 1, in x; sample 2, in x; sample 3, in x; and 4 more"):
        exclusions.add({2: "x", 7: "x", 8: "x", 1: "x"}, "")


def test_inputs_are_checked_but_for_masks() -> None:
    good, mask, bad = ({"x": torch.ones(2), "mask": torch.zeros(2)} for _ in range(3))
    mask["mask"] = torch.tensor([0.0, -INF])
    bad["x"] = torch.tensor([1.0, NAN])
    exclusions = Exclusions()
    assert check_inputs([Sample(s, i) for i, s in zip((4, 7, 9), (good, mask, bad))], exclusions) == [True, True, False]
    assert exclusions.where == {9: "its input 'x'"}
    assert exclusions.total == 3


def call(x: Tensor) -> LayerInputs:
    return LayerInputs((x,), {"attention_mask": torch.full((1, 1, 4, 4), -INF)})


def test_only_hidden_states_at_real_tokens_count() -> None:
    full, quantized = ({s: call(torch.ones(1, 4, 8)) for s in range(5)} for _ in range(2))
    masks = [torch.tensor([[False, True, True, True]])] * 5
    full[1].args[0][0, 0] = NAN  # padding
    full[2].args[0][0, 1, 3] = INF
    quantized[3].args[0][0, 3, 7] = NAN
    found: dict[int, str] = {}
    check_inputs_of("layers.5", TargetInputs(full, quantized, masks, found.update))
    assert found == {
        2: "the full-precision hidden states that enter layers.5",
        3: "the quantized hidden states that enter layers.5",
    }


def test_a_dropped_forward_ends_and_the_others_go_on() -> None:
    ended = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))

        def forward(self, x: Tensor, use_cache: bool) -> Tensor:
            try:
                for block in self.blocks:
                    x = block(x)
                return x
            finally:
                ended.append(float(x.mean()))

    model = Model()
    inputs = [{"x": torch.full((1, 2), float(i))} for i in range(4)]
    with PausedForwards(model, list(model.blocks), inputs, absent=[3]) as forwards:
        forwards.drop(0)  # never starts
        assert list(forwards.inputs(0)) == [1, 2]
        forwards.drop(1)
        assert ended == [1.0]
        for index, block in enumerate(model.blocks):
            assert list(forwards.inputs(index)) == [2]
            forwards.resume(2, block(*forwards.inputs(index)[2].args))
        assert [output is None for output in forwards.outputs()] == [True, True, False, True]


def test_samples_without_an_index_are_counted() -> None:
    assert [sample.index for sample in numbered([{}, Sample({}, 17), {}])] == [0, 17, 2]


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="transformers.qaig")
