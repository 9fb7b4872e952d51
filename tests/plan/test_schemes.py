"""How one weight may be stored: overrides, a given plan, fitting groups, rotation; and what reached nothing."""

import logging
import math
from typing import Any

import pytest
import torch
from torch import nn

from transformers_qaig import QAIGConfig
from transformers_qaig.formats.hadamard import Rotation
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.allocate import SchemeOption
from transformers_qaig.plan.schemes import SKIPPED, SchemeResolver
from transformers_qaig.utils.errors import SettingError

N, K = 24, 96
CANDIDATES = [WeightScheme(3, 32), WeightScheme(4, 32)]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.up_proj = nn.Linear(K, N), nn.Linear(K, N)
        self.router_q_proj = nn.Linear(K, N)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))


def resolver(**settings: Any) -> SchemeResolver:
    return SchemeResolver(QAIGConfig(**settings), Model(), {})


def schemes(
    of: SchemeResolver, path: str = "layers.0.q_proj", candidates: list[WeightScheme] | None = CANDIDATES, **how: Any
) -> list[WeightScheme | None]:
    options, reason = of.options(path, torch.empty(N, K, dtype=torch.bfloat16), "", candidates, **how)
    assert not reason
    return [option.scheme for option in options]


def plan(**changes: Any) -> dict[str, Any]:
    return {"layers.0.q_proj": {"bits": 5, "group_size": 32, "sym": True} | changes}


def test_each_candidate_is_an_option_of_the_size_that_it_takes() -> None:
    options, _ = resolver().options("layers.0.q_proj", torch.empty(N, K, dtype=torch.bfloat16), "", CANDIDATES)
    assert [(o.scheme, o.size) for o in options] == [(s, s.stored_bits(N, K, 16)) for s in CANDIDATES]
    assert all(math.isnan(option.cost) and option.elements == N * K for option in options)
    (wider, _), _ = resolver().options("layers.0.q_proj", torch.empty(N, K), "", CANDIDATES)
    assert wider.size == CANDIDATES[0].stored_bits(N, K, 32), "scales are as wide as the weight's elements"


def test_a_group_that_does_not_divide_is_fitted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "transformers.qaig")
    of = resolver()
    assert schemes(of, candidates=[WeightScheme(4, 64), WeightScheme(3, 64)]) == [
        WeightScheme(4, 48),
        WeightScheme(3, 48),
    ]
    schemes(of, "layers.1.q_proj", [WeightScheme(4, 64)])
    assert [record.getMessage() for record in caplog.records] == ["group_size 64 does not divide 96 input channels: 48"]


def test_a_row_shorter_than_a_group_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "transformers.qaig")
    schemes(resolver(), candidates=[WeightScheme(4, 128)])
    assert caplog.records == []


def test_overrides_apply_one_after_the_other() -> None:
    of = resolver(overrides={"q_proj": {"sym": True, "bits": 2}, "layers.0": 8, "layers.1": {"group_size": 48}})
    assert schemes(of) == [WeightScheme(8, 32, True)], "candidates that became equal are one"
    assert schemes(of, "layers.1.q_proj") == [WeightScheme(2, 48, True)]
    assert schemes(of, "layers.1.up_proj") == [WeightScheme(3, 48), WeightScheme(4, 48)]
    of.check("layers.0.q_proj")


@pytest.mark.parametrize(
    ("overrides", "stays"),
    [({}, True), ({"q_proj": {"group_size": 32}}, True), ({"q_proj": 4}, False), ({"q_proj": {"bits": 4}}, False)],
)
def test_staying_as_it_is_is_the_last_option_unless_bits_are_given(overrides: dict[str, Any], stays: bool) -> None:
    of, weight = resolver(overrides=overrides), torch.empty(N, K, dtype=torch.bfloat16)
    options, _ = of.options("layers.0.q_proj", weight, "", CANDIDATES, may_stay=True)
    assert (options[-1] == SchemeOption(None, 16 * N * K, 0.0, N * K)) == stays
    assert [option.scheme is None for option in options[:-1]].count(True) == 0


def test_what_cannot_be_packed_has_its_reason() -> None:
    of, weight = resolver(modules_to_not_convert=["layers.1"]), torch.empty(N, K)
    assert of.options("layers.0.q_proj", weight, "too small", CANDIDATES) == ([], "too small")
    assert of.options("layers.1.q_proj", weight, "too small", CANDIDATES) == ([], SKIPPED)
    assert of.dense == {"layers.0.q_proj": "too small", "layers.1.q_proj": SKIPPED}


def test_a_given_plan_comes_before_the_candidates() -> None:
    of = resolver(plan=plan())
    assert schemes(of, candidates=None) == schemes(of) == [WeightScheme(5, 32, True)]
    assert of.options("layers.0.up_proj", torch.empty(N, K), "", None) == ([], "not in the given plan")
    of.check("layers.0.q_proj")


def test_what_is_not_to_be_converted_is_left_out_of_a_given_plan() -> None:
    of = resolver(plan=plan(), modules_to_not_convert=["q_proj"])
    assert of.options("layers.0.q_proj", torch.empty(N, K), "", None) == ([], SKIPPED)
    of.check("layers.0.up_proj")


def test_inputs_are_rotated_in_the_largest_block_that_divides_them() -> None:
    of = resolver(recipe={"rotation": "all"}, seed=7)
    assert {s.rotation for s in schemes(of) if s} == {Rotation(32, 7)}
    assert {s.rotation for s in schemes(of, unrotated="experts") if s} == {None}
    assert {s.rotation for s in schemes(resolver(seed=7)) if s} == {None}


def test_a_given_plan_keeps_its_own_rotation() -> None:
    assert schemes(resolver(plan=plan(), recipe={"rotation": "all"}))[0].rotation is None  # type: ignore[union-attr]
    rotated = resolver(plan=plan(rotation={"block": 32, "seed": 3}))
    assert schemes(rotated)[0].rotation == Rotation(32, 3)  # type: ignore[union-attr]
    with pytest.raises(SettingError, match=r"plan\['layers\.0\.q_proj'\]: experts are not rotated; remove"):
        schemes(rotated, unrotated="experts")
    with pytest.raises(SettingError, match=r"plan\['layers\.0\.q_proj'\] is for another model: .*block"):
        schemes(resolver(plan=plan(rotation={"block": 64, "seed": 3})))


def test_an_override_that_reaches_nothing_packed_is_refused_with_the_reason() -> None:
    of = resolver(overrides={"layers.1": 3, "layers.0": 3})
    schemes(of, "layers.0.q_proj")
    with pytest.raises(
        SettingError, match=r"overrides\['layers\.1'\] reaches no weight.* looks like 'layers\.0\.q_proj'"
    ):
        of.check("layers.0.q_proj")
    of.options("layers.1.q_proj", torch.empty(N, K), "too small", CANDIDATES)
    with pytest.raises(SettingError, match=r"overrides\['layers\.1'\].*: layers\.1\.q_proj is too small\. Remove it"):
        of.check("layers.0.q_proj")


def test_a_path_of_a_given_plan_that_reaches_nothing_is_refused() -> None:
    of = resolver(plan=plan())
    with pytest.raises(SettingError, match=r"`plan` names 'layers\.0\.q_proj', but this model has no such weight"):
        of.check("layers.1.q_proj")


@pytest.mark.parametrize("argument", ["overrides", "modules_to_not_convert"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name(argument: str) -> None:
    patterns = {"q_prj": 4} if argument == "overrides" else ["q_prj"]
    with pytest.raises(SettingError, match=rf"`{argument}` names 'q_prj', which matches no module.*q_proj"):
        resolver(**{argument: patterns})


def test_a_bare_name_tells_how_many_modules_it_reaches(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "transformers.qaig")
    resolver(overrides={"up_proj": 4, "layers.0.q_proj": 4})
    resolver(modules_to_not_convert=["q_proj"])
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told[0] == (
        "INFO", "`overrides` names 'up_proj', and reaches 2 modules whose names end so: 2 x up_proj.",
    )  # fmt: skip
    assert told[1] == (
        "WARNING",
        "`modules_to_not_convert` names 'q_proj', and reaches 4 modules whose names end so: "
        "2 x q_proj, 2 x router_q_proj.",
    )
    assert len(told) == 2


@pytest.mark.parametrize(
    ("settings", "chooses"),
    [({}, False), ({"budget": 3.2}, False), ({"budget": "3GB"}, True), ({"budget": "3GB", "plan": plan()}, False)],
)
def test_a_budget_for_the_file_chooses_outside_the_blocks(settings: dict[str, Any], chooses: bool) -> None:
    assert resolver(**settings).chooses_outside == chooses
