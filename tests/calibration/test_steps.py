"""The steps that a recipe asks for, in passes; and what each makes no decision about."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from transformers_qaig.calibration import steps
from transformers_qaig.calibration.decisions import BlockDecisions
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.calibration.steps import clip, equalize, gptq, passes, rotate
from transformers_qaig.config.recipes import Recipe, recipe_of
from transformers_qaig.distributed import Terms
from transformers_qaig.equalization.fold import Group
from transformers_qaig.execution.group_inputs import GroupInputs
from transformers_qaig.formats.reference import Rotation
from transformers_qaig.formats.scheme import WeightScheme

K = 32


def context(recipe: Recipe, tokens: int = 128, **scheme: Any) -> GroupContext:
    """One linear at the end of a block, without a producer."""
    torch.manual_seed(0)
    block = nn.ModuleDict({"fc": nn.Linear(K, 16)})
    x, mask = torch.randn(1, tokens, K), torch.ones(1, tokens, dtype=torch.bool)
    inputs = GroupInputs([0], x, x, mask, [tokens], args=(x,), token_weights=mask.float())
    schemes = {"fc": WeightScheme(3, K, **scheme)}
    return GroupContext(
        block, Group(("fc",), "fc", None, (-1,) * K), schemes, Terms([inputs]), recipe, torch.float32, False
    )


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("rtn", [("equalize", "clip", "rotate")]),
        ("gptq", [("gptq", "rotate")]),
        ("fast", [("equalize", "clip", "rotate")]),
    ],
)
def test_a_recipe_says_which_steps_run_in_which_pass(recipe: str, expected: list[tuple[str, ...]]) -> None:
    found = passes(recipe_of(recipe))
    assert [tuple(step.name for step in each.steps) for each in found] == expected
    assert found[-1].rounds
    assert found[-1].uses_validation_samples == (recipe == "gptq")


def test_equalization_before_other_rounding_has_a_pass_of_its_own() -> None:
    scales, rounding = passes(replace(recipe_of("gptq"), equalization="mse"))
    assert [step.name for step in scales.steps] == ["equalize"]
    assert not scales.rounds
    assert [step.name for step in rounding.steps] == ["gptq", "rotate"]


def test_what_is_not_asked_for_or_cannot_be_done_is_no_decision() -> None:
    found = context(recipe_of("rtn"))
    decisions = BlockDecisions(found.schemes)
    assert [step(found, decisions) for step in (equalize, clip, gptq, rotate)] == [None] * 4


@pytest.mark.parametrize(("step", "recipe"), [(gptq, "gptq"), (clip, "fast")])
def test_too_few_tokens_decide_nothing(step: Any, recipe: str) -> None:
    few, enough = (context(recipe_of(recipe), tokens) for tokens in (63, 64))
    assert step(few, BlockDecisions(few.schemes)) is None
    assert step(enough, BlockDecisions(enough.schemes)) is not None


def test_gptq_has_a_smaller_output_error_than_nearest() -> None:
    found = context(recipe_of("gptq"))
    decisions = BlockDecisions(found.schemes)
    x, weight = next(iter(found.inputs)).hidden, found.block["fc"].weight.detach()  # type: ignore[index]
    rounded = gptq(found, decisions)
    assert rounded is not None
    nearest = decisions.grid("fc", weight, torch.float32).quantize(weight)
    error = {name: float((x @ (w - weight).T).square().mean()) for name, w in (
        ("gptq", rounded.roundings["fc"].values), ("nearest", nearest),
    )}  # fmt: skip
    assert error["gptq"] < 0.95 * error["nearest"]


def test_a_rotation_is_taken_with_the_rounding_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    rotation = Rotation(32, 1)
    found = context(recipe_of("gptq"), rotation=rotation)
    decisions = BlockDecisions({"fc": WeightScheme(3, K)})
    monkeypatch.setattr(steps, "gptq", lambda context, decisions: None)
    rotated = rotate(found, decisions)
    assert rotated is not None
    assert rotated.schemes["fc"].rotation == rotation
    assert decisions.schemes["fc"].rotation is None
