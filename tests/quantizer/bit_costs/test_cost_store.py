"""Measured errors and costs in a work folder: what is read again, by which run, and what is measured anew."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformers_qaig import QAIGConfig
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.allocate import SchemeOption
from transformers_qaig.quantizer.bit_costs.cost_store import CostStore, RunningCosts

PATHS = ("layers.0.a", "layers.0.b")
COSTS = {"layers.0.a": 0.1, "layers.0.b": 1 / 3}


def model(value: float = 1.0) -> nn.Module:
    made = nn.Module()
    made.a, made.b = nn.Linear(4, 3), nn.Linear(3, 2)
    for parameter in made.parameters():
        nn.init.constant_(parameter, value)
    return made


def options(*bits: int) -> dict[str, list[SchemeOption]]:
    dense = SchemeOption(None, 16 * 12, 0.0, 12)
    return {path: [*(SchemeOption(WeightScheme(b, 32), b, float("nan"), 12) for b in bits), dense] for path in PATHS}


def data(
    samples: int = 24, answers: Sequence[int] = (1, 2), left_out: Mapping[int, str] | None = None
) -> CalibrationData:
    inputs = [{"input_ids": torch.arange(4)[None] + number} for number in range(samples)]
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, list(answers)] = True
    made = CalibrationData.of(inputs, [mask] * samples)
    made.exclusions.add(left_out or {}, "")
    return made


def store(folder: Path | None, given: CalibrationData | None = None, **changed: Any) -> CostStore:
    config = QAIGConfig(calibration={"work_dir": folder}, **changed.pop("settings", {}))
    return CostStore(changed.pop("options", options(2, 4)), given or data(), config, changed.pop("model", model()))


def errors() -> dict[str, Tensor]:
    return {"a": torch.randn(3, 4), "b": torch.randn(2, 3)}


def test_costs_are_read_again_to_the_bit_for_their_width_and_kind(tmp_path: Path) -> None:
    with store(tmp_path) as kept:
        assert kept.costs(0, "fisher", PATHS) is None
        kept.save_costs(0, "fisher", COSTS)
        assert kept.costs(0, "fisher", PATHS) == COSTS
    with store(tmp_path) as again:
        assert again.costs(0, "fisher", PATHS) == COSTS
        assert again.costs(0, "fisher", PATHS[:1]) == {PATHS[0]: COSTS[PATHS[0]]}
        assert again.costs(1, "fisher", PATHS) is None
        assert again.costs(0, "output_error", PATHS) is None
    assert {path.parent.name for path in tmp_path.rglob("*.safetensors")} == {"costs"}


def test_errors_are_read_again_to_the_bit_for_their_width_and_target(tmp_path: Path) -> None:
    found = errors()
    with store(tmp_path) as kept:
        kept.save_errors(1, "layers.0", found)
    with store(tmp_path) as again:
        read = again.errors(1, "layers.0", model(), ["b", "a"])
        assert read is not None
        assert list(read) == ["b", "a"]
        assert all(torch.equal(read[name], found[name]) for name in found)
        assert again.errors(0, "layers.0", model(), ["a"]) is None
        assert again.errors(1, "layers.1", model(), ["a"]) is None


def test_without_a_work_folder_nothing_is_kept() -> None:
    with store(None) as kept:
        kept.save_costs(0, "fisher", COSTS)
        kept.save_errors(0, "layers.0", errors())
        assert kept.costs(0, "fisher", PATHS) is None
        assert kept.errors(0, "layers.0", model(), ["a"]) is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"options": options(2, 3)}, "options"),
        ({"given": data(answers=(1, 3))}, "answers"),
        ({"given": data(samples=23)}, "samples"),
        ({"model": model(2.0)}, "weights"),
        ({"settings": {"seed": 5}}, "seed"),
        ({"settings": {"recipe": "gptq"}}, "recipe"),
        ({"settings": {"activation_bits": 8}}, "activation_bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_is_refused_with_what_differs(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    with store(tmp_path):
        pass
    with pytest.raises(ValueError, match=rf"holds another run \(different [a-z_, ]*{named}"):
        store(tmp_path, **changed)


def test_the_sizes_and_costs_of_options_may_differ(tmp_path: Path) -> None:
    """They follow from the schemes, or are what is measured."""
    with store(tmp_path) as kept:
        kept.save_costs(0, "fisher", COSTS)
    other = {
        path: [SchemeOption(o.scheme, o.size + 1, 0.5, o.elements) for o in of] for path, of in options(2, 4).items()
    }
    with store(tmp_path, options=other) as again:
        assert again.costs(0, "fisher", PATHS) == COSTS


def test_a_folder_in_use_is_refused_until_its_context_ends(tmp_path: Path) -> None:
    with store(tmp_path), pytest.raises(ValueError, match="in use by another run"):
        store(tmp_path)
    with store(tmp_path):
        pass


@pytest.mark.parametrize(
    "found",
    [{"layers.0.a": 1.0}, {"layers.0.a": "much", "layers.0.b": 1.0}, [1.0, 2.0], None],
    ids=["one is missing", "no number", "a list", "nothing"],
)
def test_costs_that_are_not_those_of_the_weights_are_measured_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, found: Any
) -> None:
    with store(tmp_path) as kept:
        kept.save_costs(0, "fisher", found)
        assert kept.costs(0, "fisher", PATHS) is None
    (warning,) = caplog.records
    assert str(tmp_path / "costs" / "0.costs.fisher.safetensors") in warning.getMessage()
    assert "is done again" in warning.getMessage()


@pytest.mark.parametrize("found", [{"a": torch.zeros(3, 4)}, {"a": torch.zeros(3, 4), "b": torch.zeros(3, 2)}, {}])
def test_errors_that_are_not_those_of_the_target_are_measured_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, found: dict[str, Tensor]
) -> None:
    with store(tmp_path) as kept:
        kept.save_errors(0, "layers.0", found)
        assert kept.errors(0, "layers.0", model(), ["a", "b"]) is None
    assert "is done again" in caplog.text


def test_what_was_measured_without_a_sample_leaves_it_out_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = data()
    with store(tmp_path, given) as kept:
        given.exclusions.add({5: "its gradient"}, "")
        kept.save_costs(0, "fisher", COSTS)
    caplog.clear()
    later = data()
    with store(tmp_path, later) as again:
        assert again.costs(1, "fisher", PATHS) is None
        assert later.exclusions.where == {}
        assert again.costs(0, "fisher", PATHS) == COSTS
        assert later.exclusions.where == {5: "its gradient"}
        again.costs(0, "fisher", PATHS)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "Calibration sample 5 is left out: NaN or Inf in its gradient."
    ]


def test_too_many_samples_that_were_left_out_end_the_run(tmp_path: Path) -> None:
    given = data()
    with store(tmp_path, given) as kept:
        given.exclusions.add({5: "its gradient"}, "")
        kept.save_costs(0, "fisher", COSTS)
    later = data()
    with store(tmp_path, later) as again:
        later.exclusions.add({6: "its gradient"}, "")
        with pytest.raises(ValueError, match=r"2 of 24 calibration samples.*Begin anew with other samples"):
            again.costs(0, "fisher", PATHS)


def test_what_the_first_samples_cost_is_read_again_for_the_same_samples_and_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = RunningCosts(torch.rand(2, 3), 17, 2)
    with store(tmp_path) as kept:
        assert kept.running_costs(0, "fisher", [0, 1, 4], 3) is None
        kept.save_running_costs(0, "fisher", [0, 1, 4], RunningCosts(torch.rand(2, 3), 9, 1))
        kept.save_running_costs(0, "fisher", [0, 1, 4], found)
    with store(tmp_path) as again:
        read = again.running_costs(0, "fisher", [0, 1, 4], 3)
        assert read is not None
        assert torch.equal(read.total, found.total)
        assert read[1:] == found[1:]
        assert again.running_costs(1, "fisher", [0, 1, 4], 3) is None
        assert not caplog.records
        assert again.running_costs(0, "fisher", [0, 1, 5], 3) is None
        assert again.running_costs(0, "fisher", [0, 1, 4], 4) is None
    assert ["other samples" in record.getMessage() for record in caplog.records] == [True, False]
