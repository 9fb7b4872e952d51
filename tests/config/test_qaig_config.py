"""Defaults of a config, copies of it, and attributes that are set later."""

import copy
import json
from typing import Any

import pytest

from tests.config.plans import SCHEME
from transformers_qaig import BitBudget, CalibrationConfig, QAIGConfig
from transformers_qaig.config.budget import DEFAULT_BUDGET
from transformers_qaig.config.recipes import RECIPES


def test_defaults() -> None:
    config = QAIGConfig()
    assert (config.bits, config.group_size, config.sym, config.recipe.name) == (4, 128, False, "default")
    assert config.quant_method == "qaig"


def test_deepcopy_shares_runtime_objects() -> None:
    processor, dataset = lambda: None, [object()]
    config = QAIGConfig(bits=2, dataset=dataset, calibration={"processor": processor})
    other = copy.deepcopy(config)
    assert other == config
    assert other.calibration.processor is processor
    assert other.dataset is dataset


@pytest.mark.parametrize(
    ("arguments", "rotates"),
    [
        ({}, False),
        ({"recipe": "default"}, False),
        ({"recipe": "default", "activation_bits": 8}, True),
        ({"recipe": {"rotation": "none"}, "activation_bits": 8}, False),
        ({"recipe": {"rotation": "all"}}, True),
        ({"recipe": {"name": "rtn", "rotation": "all"}}, True),
        ({"recipe": "fast", "activation_bits": 8}, False),
    ],
)
def test_inputs_are_rotated_as_asked_or_as_the_recipe_says(arguments: dict, rotates: bool) -> None:
    config = QAIGConfig(**arguments)
    assert config.rotates == rotates
    assert QAIGConfig.from_dict(json.loads(config.to_json_string())).rotates == rotates


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("recipe", "gptq", RECIPES["gptq"]),
        ("budget", 3.5, BitBudget(bits=3.5)),
        ("calibration", {"min_coverage": 0.5}, CalibrationConfig(min_coverage=0.5)),
        ("plan", QAIGConfig(plan={"a.b": SCHEME}), {"a.b": SCHEME}),
    ],
)
def test_an_attribute_takes_what_the_argument_takes(name: str, given: object, kept: object) -> None:
    config = QAIGConfig()
    setattr(config, name, given)
    assert getattr(config, name) == kept
    assert copy.deepcopy(config) == config
    assert repr(config)


def test_a_budget_set_later_takes_the_place_of_the_default_width() -> None:
    config = QAIGConfig()
    config.budget = 3.2
    config.validate()
    assert (config.bits, copy.deepcopy(config).bits) == (None, None)
    config.update(budget=None)
    assert config.bits == 4
    chosen = QAIGConfig(bits=4)
    chosen.budget = 3.2
    with pytest.raises(ValueError, match=r"bits=4.*budget"):
        chosen.validate()


def test_updating_takes_every_name_and_returns_what_it_does_not_know() -> None:
    config = QAIGConfig(calibration={"device": "cpu"})
    assert config.update(bits=3, calibration={"min_coverage": 0.5}, other=1) == {"other": 1}
    assert (config.bits, config.calibration) == (3, CalibrationConfig(min_coverage=0.5))


@pytest.mark.parametrize("recipe", ["default", "best", {"name": "default", "rotation": "all"}])
def test_recipes_that_attribute_widths_get_a_budget(recipe: Any) -> None:
    config = QAIGConfig(recipe=recipe)
    found = config.with_default_budget()
    assert found.budget == DEFAULT_BUDGET
    assert config.budget is None
    found.validate()
    assert found.recipe == config.recipe


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 4},
        {"budget": 3.2},
        {"plan": {"a": {"bits": 4, "group_size": 32, "sym": False}}},
        {"recipe": "gptq"},
        {"recipe": "rtn"},
        {"recipe": {"name": "best", "attributed_widths": False}},
    ],
)
def test_what_says_widths_is_kept(settings: dict[str, Any]) -> None:
    config = QAIGConfig(**settings)
    assert config.with_default_budget() is config


def test_that_no_width_is_given_survives_a_round_trip() -> None:
    config = QAIGConfig()
    assert QAIGConfig.from_dict(config.to_dict()).with_default_budget().budget == DEFAULT_BUDGET
    uniform = QAIGConfig(bits=4)
    assert uniform != config
    for written in (uniform.to_dict(), uniform.to_diff_dict()):
        assert QAIGConfig.from_dict(written).with_default_budget().budget is None
