"""Bad values are refused by the name of their setting, at once and briefly."""

import time
from typing import Any

import pytest
import torch

from tests.config.plans import rotated
from transformers_qaig import QAIGConfig
from transformers_qaig.quantizer import QAIGHfQuantizer


def nested(levels: int) -> list[Any]:
    """A list in a list in a list..."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"bits": 1}, "bits"),
        ({"bits": 9}, "bits"),
        ({"bits": 3.0}, "bits"),
        ({"bits": True}, "bits"),
        ({"group_size": 16}, "group_size"),
        ({"group_size": 0}, "group_size"),
        ({"sym": 1}, "sym"),
        ({"recipe": "defualt"}, "default"),
        ({"recipe": {"roundin": "gptq"}}, "Did you mean 'rounding'"),
        ({"recipe": {"rounding": "gptqq"}}, "nearest"),
        ({"recipe": {"steps": 0}}, "positive"),
        ({"recipe": {"clipping": 1}}, "True or False"),
        ({"recipe": {"asymmetric": 2.0}}, "0 to 1"),
        ({"recipe": {"name": "defualt"}}, "default"),
        ({"recipe": {"drift": 1, "asymmetric": 1}}, "old and its new name"),
        ({"recipe": 3}, "recipe"),
        ({"recipe": {"name": "foo"}}, "recipe"),
        ({"calibration": 3}, "calibration"),
        ({"calibration": {"devise": "cpu"}}, "Did you mean 'device'"),
        ({"calibration": {"trust_remote_code": "yes"}}, "trust_remote_code"),
        ({"calibration": {"min_coverage": 1.5}}, "min_coverage"),
        ({"calibration": {"expert_memory": 3.5}}, r"name the unit, as in '3\.5GB'"),
        ({"calibration": {"expert_memory": "64"}}, "name the unit, as in '64GB'"),
        ({"num_samples": 0}, "num_samples"),
        ({"seed": -1}, "seed"),
        ({"calibration": {"min_coverage": True}}, "min_coverage"),
        ({"recipe": ["fast"]}, "recipe"),
        ({"modules_to_not_convert": 3}, "modules_to_not_convert"),
        ({"overrides": {3: 4}}, "overrides"),
        ({"budget": {"bits": 3, "candidates": (2, "3")}}, "candidates"),
        ({"budget": {"bits": 3, "candidates": ([2],)}}, "candidates"),
        ({"budget": {"bits": 3, "candidates": 4}}, "candidates"),
        ({"budget": {"bits": 3, "candidates": []}}, "candidates"),
        ({"budget": {"bits": 3, "candidates": (2, 9)}}, "candidates"),
        ({"budget": {"bits": 3, "candidate": (2, 4)}}, "Did you mean 'candidates'"),
        ({"budget": {}}, "exactly one"),
        ({"budget": {"bits": 3, "size": "3GiB"}}, "exactly one"),
        ({"budget": float("inf")}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"budget": 0}, "budget"),
        ({"budget": True}, "budget"),
        ({"budget": 3_500_000_000}, r"BitBudget\(size="),
        ({"budget": "3.5 apples"}, "GiB"),
        ({"budget": "3"[:0]}, "GiB"),
        ({"budget": {"bits": 3, "cost": "fischer"}}, "fisher"),
        ({"budget": {"bits": 3, "fuse": 1}}, "fuse"),
        ({"bits": 4, "budget": 3.2}, "bits=4"),
        ({"bits": (2, 3, 4)}, "needs a budget"),
        ({"plan": {3: {"bits": 4, "group_size": 32, "sym": False}}}, "plan"),
        ({"calibration": {"work_dir": 3}}, "work_dir"),
        ({"calibration": {"work_dir": __file__}}, "work_dir"),
        ({"calibration": {"work_dir": ""}}, "work_dir"),
        ({"calibration": {"work_dir": "a\0b"}}, "work_dir.*null"),
        ({"calibration": {"work_dir": "\ud800"}}, "work_dir"),
        ({"calibration": {"work_dir": "x" * 5000}}, "work_dir.*too long"),
        ({"calibration": {"columns": "image"}}, "columns"),
        ({"calibration": {"columns": {"image": 3}}}, "columns.*'picture'.*3"),
        ({"calibration": {"columns": {0: "image"}}}, "columns"),
        ({"calibration": {"token": 3}}, "`token`.* got a int"),
        ({"calibration": {"token": ""}}, "`token`"),
        ({"calibration": {"processor": 3}}, "processor.*got 3"),
        ({"calibration": {"processor": {"image": 1}}}, "processor"),
        ({"calibration": {"processor": QAIGConfig}}, "processor.*AutoProcessor"),
        ({"calibration": {"processor": ""}}, "processor"),
        ({"calibration": {"device": 10**30}}, "device=10"),
        ({"calibration": {"device": True}}, "device=True"),
        ({"calibration": {"device": "cud"}}, "device"),
        ({"calibration": {"device": "meta"}}, "device"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
        ({"modules_to_not_convert": [""]}, "modules_to_not_convert"),
        ({"overrides": {"*.o_proj": 12}}, "o_proj"),
        ({"overrides": {"*.o_proj": {"bit": 4}}}, "bit"),
        ({"overrides": {"*.o_proj": torch.ones(2, device="meta")}}, r"overrides\['\*\.o_proj'\].*meta"),
        ({"overrides": {"*.o_proj": {"bits": float("nan")}}}, r"overrides\['\*\.o_proj'\]\['bits'\].*nan"),
        ({"plan": {}}, "plan"),
        ({"plan": {"a": {"bits": 3}}}, r"plan\['a'\].*group_size"),
        ({"plan": {"a.b": {"bits": 1e400, "group_size": 32, "sym": True}}}, r"plan\['a\.b'\]\['bits'\].*inf"),
        ({"plan": {"a.b": {"bits": 9, "group_size": 32, "sym": True}}}, r"plan\['a\.b'\]: `bits`"),
        ({"plan": {"a.b": nested(10**5)}}, r"plan\['a\.b'\]\[0\].*nested"),
        ({"overrides": {"a.b": nested(10**5)}}, r"overrides\['a\.b'\]\[0\].*nested"),
        ({"activation_bits": 4}, "activation_bits"),
        ({"vision_bits": 1}, "vision_bits"),
        ({"lm_head_bits": True}, "lm_head_bits"),
        ({"embedding_bits": "4"}, "embedding_bits"),
        ({"quant_method": "gptq"}, "quant_method"),
        ({"plan": "no/such/file.json"}, "no/such/file"),
        ({"plan": {"quant_method": "qaig"}}, "no plan"),
        ({"recipe": {"rotation": True}}, "rotation"),
        ({"overrides": {"*": {"rotation": None}}}, "rotation"),
        ({"plan": rotated({"block": 64, "seed": 0, "axis": 1})}, "exactly block and seed"),
        ({"plan": rotated({"block": 64})}, "exactly block and seed"),
        ({"plan": rotated(64)}, "exactly block and seed"),
        ({"plan": rotated({"block": 48, "seed": 0})}, "block of .*48"),
        ({"plan": rotated({"block": 64.0, "seed": 0})}, "block of"),
        ({"plan": rotated({"block": 64, "seed": -1})}, "seed from 0"),
        ({"plan": rotated({"block": 64, "seed": 2**63})}, "seed from 0"),
    ],
)
def test_bad_values_are_refused_by_name(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        QAIGConfig(**arguments)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="group_size"):
        QAIGConfig(groupsize=64)


@pytest.mark.parametrize(
    "setting",
    [
        {"budget": "1" * 200_000 + "x"},
        {"budget": {"size": 10**400}},
        {"budget": "9" * 30 + "TiB"},
        {"budget": 10**400},
        {"budget": {"x" * 10**6: 1}},
        {"budget": {"bits": 3, "cost": "x" * 10**6}},
        {"num_samples": 10**4000},
        {"group_size": 10**4000},
        {"seed": 10**4000},
        {"needs_version": {"a": 1}},
        {"overrides": {"x" * 10**6: 1}},
        {"modules_to_not_convert": {"x" * 10**6: 1}},
        {"recipe": "x" * 10**6},
        {"recipe": {"x" * 10**6: 1}},
        {"recipe": {"name": ["x"]}},
        {"stages": {"x" * 10**6: 1}},
        {"plan": {"x" * 10**6: 1}},
        {"x" * 10**6: 1},
        {"self": 1},
    ],
)
def test_no_setting_of_a_file_costs_time_or_a_long_message(setting: dict[str, Any]) -> None:
    start = time.process_time()
    with pytest.raises((ValueError, TypeError)) as error:
        QAIGConfig.from_dict({"format_version": 1, **setting})
    assert time.process_time() - start < 1
    assert len(str(error.value)) < 1000
    assert next(iter(setting)).replace("stages", "recipe")[:50] in str(error.value)


def test_what_a_caller_set_in_a_config_is_checked_before_quantizing() -> None:
    config = QAIGConfig()
    config.bits = 99
    with pytest.raises(ValueError, match=r"`bits` .*99"):
        QAIGHfQuantizer(config, pre_quantized=False)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"steps": 50}, r"recipe={'steps': 50} has no effect: it needs `rounding='learned'` or `end_to_end=True`."),
        ({"end_to_end": True, "steps": 50}, ""),
        ({"own_answers": True}, "'own_answers': True} has no effect: it needs `end_to_end=True`"),
        ({"name": "gptq", "grid_points": 5}, "'grid_points': 5} has no effect: it needs `equalization='mae'`"),
        ({"ig_steps": 16}, "'ig_steps': 16} has no effect: it needs `token_weights='qig'`"),
        ({"name": "rtn", "validate": True}, "'validate': True} has no effect"),
        ({"name": "best", "steps": 50}, ""),
        ({"token_weights": "qig", "ig_steps": 16}, ""),
    ],
)
def test_an_attribute_of_the_recipe_that_nothing_reads_is_told(
    recipe: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    QAIGConfig(recipe=recipe)
    assert said in caplog.text
    assert bool(said) == bool(caplog.records)
