"""What a person sees of a configuration is short; what a file holds is whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig

from tests.lifecycle import FAST
from transformers_qaig import BitBudget, CalibrationConfig, QAIGConfig

ENTRY = {"bits": 3, "group_size": 64, "sym": False}


def plan_of(layers: int) -> dict[str, dict]:
    return {f"model.layers.{i}.mlp.up_proj": dict(ENTRY) for i in range(layers)}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, "QAIGConfig(group_size=128)"),
        (
            {"bits": 3, "recipe": {"rotation": "all"}, "modules_to_not_convert": ["lm_head"]},
            "QAIGConfig(bits=3, group_size=128, modules_to_not_convert=['lm_head'], "
            "recipe={'name': 'default', 'rotation': 'all'})",
        ),
        (
            {"budget": "3.5GiB", "recipe": "gptq"},
            "QAIGConfig(group_size=128, recipe='gptq', budget='3.5GiB')",
        ),
        ({"budget": 1}, "QAIGConfig(group_size=128, budget=1)"),
        ({"budget": BitBudget(size=10**9)}, "QAIGConfig(group_size=128, budget={'size': 1000000000})"),
        ({"budget": BitBudget(size=50)}, "QAIGConfig(group_size=128, budget={'size': 50})"),
        ({"budget": BitBudget(bits=3, fuse=True)}, "QAIGConfig(group_size=128, budget={'bits': 3, 'fuse': True})"),
        ({"budget": BitBudget(bits=3.2, candidates=(2, 3, 4), cost="output_error", fuse=True), "seed": 7}, None),
        ({"overrides": {"*.o_proj": {"bits": 8}}, "calibration": CalibrationConfig(min_coverage=0.5)}, None),
    ],
)  # fmt: skip
def test_what_is_printed_is_python_that_makes_it_again(settings: dict[str, Any], shown: str | None) -> None:
    config = QAIGConfig(**settings)
    text = repr(config)
    assert shown is None or " ".join(text.split()).replace("( ", "(").replace(", )", ")") == shown
    assert max(map(len, text.splitlines())) <= 120
    known = {"QAIGConfig": QAIGConfig, "BitBudget": BitBudget, "CalibrationConfig": CalibrationConfig}
    assert eval(text, known) == config


def test_what_is_never_saved_is_printed_all_the_same() -> None:
    calibration = CalibrationConfig(max_length=100, processor=lambda: None, token="secret", expert_memory="3.5GiB")
    text = repr(QAIGConfig(dataset=[{}] * 7, calibration=calibration))
    assert "dataset=<list of 7>" in text
    assert "CalibrationConfig(max_length=100, processor=<function>, expert_memory='3.5GiB')" in text
    assert "dataset='org/name:train'" in repr(QAIGConfig(dataset="org/name:train"))


def test_a_plan_is_summed_up() -> None:
    plan = plan_of(300)
    assert "# plan: 300 layers, 3 bits\n" in repr(QAIGConfig(plan=plan))
    plan["model.layers.0.mlp.up_proj"]["bits"] = 8
    assert "# plan: 300 layers, 3.02 bits on average (299 of 3, 1 of 8)\n" in repr(QAIGConfig(plan=plan))


def test_experts_that_a_plan_names_together_count_one_by_one() -> None:
    entry = {"group_size": 32, "sym": False}
    widths = {"a.*.up_proj": 3, "b.0-2,7.down_proj": 2, "b.3-6.down_proj": 4}
    plan = {f"model.layers.0.{path}": {"bits": bits, **entry} for path, bits in widths.items()}
    assert "# plan: 16 layers, 3.00 bits on average (4 of 2, 8 of 3, 4 of 4)\n" in repr(QAIGConfig(plan=plan))


def test_a_models_config_prints_a_budget_without_defaults() -> None:
    config = LlavaConfig()
    config.quantization_config = QAIGConfig(budget=3.2)
    assert '"budget": "bits=3.2"' in str(config)


def test_a_models_config_prints_the_summary_and_saves_the_plan(tmp_path: Path) -> None:
    config = LlavaConfig()
    without = len(str(config).splitlines())
    config.quantization_config = QAIGConfig(bits=3, plan=plan_of(300))
    assert len(str(config).splitlines()) < without + 10
    assert "300 layers, 3 bits" in f"{config}"
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).quantization_config["plan"] == plan_of(300)
    for text in (config.to_json_string(), config.to_json_string(use_diff=False)):
        assert json.loads(text)["quantization_config"]["plan"] == plan_of(300)
    assert config.to_dict()["quantization_config"]["plan"] == config.to_diff_dict()["quantization_config"]["plan"]


def test_printing_changes_nothing_about_a_model(llava: Path, tmp_path: Path) -> None:
    config = QAIGConfig(bits=3, recipe="rtn", **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    str(model.config)
    repr(model.config.quantization_config)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert "14 layers, 3 bits" in str(again.config)
    assert again.config.quantization_config == model.config.quantization_config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_update_sets_checks_and_returns_the_rest() -> None:
    config = QAIGConfig()
    assert config.update(bits=3, recipe="fast", token="x") == {"token": "x"}
    assert (config.bits, config.recipe.name) == (3, "fast")
    changed, rest = QAIGConfig.from_dict({"bits": 3}, return_unused_kwargs=True, seed=5, token="x")
    assert (changed.seed, rest) == (5, {"token": "x"})


def test_a_stack_of_unknown_size_has_no_average() -> None:
    entry = {"group_size": 32, "sym": False}
    plan = {"a.0.experts.*.up_proj": {"bits": 3, **entry}, "a.0.q_proj": {"bits": 8, **entry}}
    assert "# plan: 2 layers and stacks of experts (1 of 3, 1 of 8)\n" in repr(QAIGConfig(plan=plan))
