"""The spelling of 0.1: read for one more release, with the new spelling in the warning; of files silently."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText

from tests.lifecycle import FAST
from transformers_qaig import BitBudget, CalibrationConfig, QAIGConfig, Recipe
from transformers_qaig.config.recipes import RECIPES


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ({"target_bits": 3.2}, {"budget": 3.2}, "budget=3.2"),
        ({"target_size": "3.5GiB"}, {"budget": "3.5GiB"}, "budget='3.5GiB'"),
        (
            {"target_bits": 3.2, "bits": [2, 4], "cost": "path", "fuse_groups": True},
            {"budget": BitBudget(3.2, candidates=(2, 4), cost="integrated_gradients", fuse=True)},
            "budget=BitBudget(bits=3.2, candidates=(2, 4), cost='integrated_gradients', fuse=True)",
        ),
        ({"budget": {"bits": 3, "cost": "alone"}}, {"budget": BitBudget(3, cost="one_at_a_time")}, "'one_at_a_time'"),
        ({"cost": "error"}, {}, "without a budget"),
        (
            {"budget": 3.2, "cost": "path"},
            {"budget": BitBudget(3.2, cost="integrated_gradients")},
            "budget=BitBudget(bits=3.2, cost='integrated_gradients')",
        ),
        (
            {"budget": "3GiB", "fuse_groups": True},
            {"budget": BitBudget(size="3GiB", fuse=True)},
            "budget=BitBudget(size='3GiB', fuse=True)",
        ),
        (
            {"stages": {"rotation": "all"}},
            {"recipe": {"name": "default", "rotation": "all"}},
            "recipe={'name': 'default', 'rotation': 'all'}",
        ),
        (
            {"recipe": "fast", "stages": {"drift": 0.5, "nodes": 2, "share_channels": False, "do_no_harm": False}},
            {"recipe": {"name": "fast", "asymmetric": 0.5, "ig_steps": 2, "equalize_gqa": False, "validate": False}},
            "'asymmetric': 0.5",
        ),
        ({"recipe": {"drift": 0.5}}, {"recipe": {"asymmetric": 0.5}}, "'asymmetric': 0.5"),
        ({"min_coverage": 0.1}, {"calibration": {"min_coverage": 0.1}}, "CalibrationConfig(min_coverage=0.1)"),
        (
            {"dataset_columns": {"image": "x"}, "processor": "a/b", "calibration_device": "cpu", "work_dir": "w"},
            {"calibration": CalibrationConfig(columns={"image": "x"}, processor="a/b", device="cpu", work_dir="w")},
            "device='cpu'",
        ),
        (
            {"token": "secret", "trust_remote_code": True},
            {"calibration": CalibrationConfig(token="secret", trust_remote_code=True)},
            "CalibrationConfig(token=..., trust_remote_code=True)",
        ),
    ],
)
def test_the_old_spelling_means_the_new_one_and_shows_it(old: dict, new: dict, shown: str) -> None:
    with pytest.warns(FutureWarning, match="next release") as caught:
        config = QAIGConfig(**old)
    (warning,) = caught
    assert shown in str(warning.message)
    assert "secret" not in str(warning.message)
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = QAIGConfig(**new)
    assert config == expected
    assert config.calibration == expected.calibration


def test_placement_of_the_old_config_is_still_used(llava: Path, tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match=r"from_pretrained\(max_memory=.*offload_folder="):
        config = QAIGConfig(recipe="rtn", max_memory={"cpu": "300KB"}, offload_folder=tmp_path, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config, device_map="auto")
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_bits": 3, "budget": 3}, "`budget` and `target_bits`"),
        ({"bits": [2, 3], "budget": 3}, "belongs into the budget"),
        ({"budget": "3.5"}, r"no size with a unit. Write budget=3\.5 for bits"),
        ({"budget": "3.2 bits"}, r"Write budget=3\.2 for bits"),
        ({"target_bits": 3, "target_size": "3GiB"}, "exactly one"),
        ({"target_bits": 3, "bits": 4}, "bits=4"),
        ({"target_bits": 3, "bits": []}, "candidates"),
        ({"work_dir": "x", "calibration": {"device": "cpu"}}, "`calibration` and `work_dir`"),
        ({"stages": {"rotation": "all"}, "recipe": RECIPES["fast"]}, "stages"),
        ({"stages": "gptq"}, "stages"),
        ({"stages": {"drift": 1, "asymmetric": 1}}, "old and its new name"),
        ({"cost": "fischer"}, "fisher"),
        ({"cost": "path", "budget": BitBudget(3)}, r"`cost` is for the budget: write budget=BitBudget\(\.\.\., cost"),
        ({"cost": "fischer", "budget": 3}, "fisher"),
        ({"offload_folder": f"{__file__}/x"}, "offload_folder"),
        ({"offload_folder": True}, "offload_folder"),
        ({"max_memory": "1GiB"}, "max_memory"),
        ({"max_memory": {"cpu": "9" * 400 + "GB"}}, "max_memory.*cpu"),
        ({"max_memory": {"cpu": 10**400}}, "max_memory.*cpu"),
        ({"max_memory": {np.int64(-1): 1}}, "max_memory.*-1"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_and_new_or_wrong_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QAIGConfig(**arguments)


def test_old_attributes_are_read_and_set_with_a_warning() -> None:
    config = QAIGConfig(budget=BitBudget(3, fuse=True), calibration={"work_dir": "a"})
    with pytest.warns(FutureWarning, match=r"calibration\.work_dir"):
        assert config.work_dir == "a"
    with pytest.warns(FutureWarning, match=r"budget\.bits"):
        assert config.target_bits == 3
    with pytest.warns(FutureWarning, match=r"calibration\.device"):
        config.calibration_device = "cpu"
    assert config.calibration == CalibrationConfig(work_dir="a", device="cpu")
    with pytest.warns(FutureWarning, match=r"calibration\.work_dir"):
        assert config.update(work_dir="b") == {}
    assert config.calibration == CalibrationConfig(work_dir="b", device="cpu")
    with pytest.raises(AttributeError, match="set `budget`"):
        config.target_bits = 4
    with pytest.raises(AttributeError, match="set `recipe`"):
        config.update(stages={"rotation": "all"})
    assert not hasattr(config, "bitz")


SAVED_BY_0_1 = {
    "activation_bits": 8, "bits": [2, 3, 4], "cost": "path", "embedding_bits": None, "format_version": 1,
    "fuse_groups": True, "group_size": 32, "lm_head_bits": 8, "min_coverage": 0.5, "modules_to_not_convert": None,
    "needs_version": "0.1.0", "num_samples": 128, "overrides": {"*.o_proj": 8}, "quant_method": "qaig",
    "recipe": "fast", "seed": 0, "stages": {"drift": 0.5, "nodes": 2}, "sym": False, "target_bits": 4.4,
    "target_size": None, "vision_bits": None, "plan": {"a.b": {"bits": 3, "group_size": 32, "sym": False}},
}  # fmt: skip


def test_a_file_of_0_1_means_the_same_without_a_warning_and_is_written_anew() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = QAIGConfig.from_dict(SAVED_BY_0_1)
        again = QAIGConfig.from_dict(config.to_dict())
        assert QAIGConfig(**config.to_dict()) == config
    assert config == again
    assert config.budget == BitBudget(4.4, candidates=(2, 3, 4), cost="integrated_gradients", fuse=True)
    assert config.recipe.changes == {"ig_steps": 2, "asymmetric": 0.5}
    assert (config.plan, config.activation_bits) == (SAVED_BY_0_1["plan"], 8)
    assert config.calibration == again.calibration == CalibrationConfig(min_coverage=0.5)
    with pytest.warns(FutureWarning, match="target_bits|budget="):  # a mapping of the user's own
        QAIGConfig.from_dict({"target_bits": 3.2})


def test_a_file_names_the_oldest_release_that_understands_it() -> None:
    """0.1 knows every key of a file without a budget and with a recipe that has a name."""
    plain = QAIGConfig(bits=3, recipe="best", vision_bits=4).to_dict()
    assert (plain["format_version"], plain["needs_version"]) == (1, "0.1.0")
    assert plain.keys() <= SAVED_BY_0_1.keys()
    for settings in ({"budget": 3}, {"recipe": {"rotation": "all"}}):
        new = QAIGConfig(**settings).to_dict()
        assert (new["format_version"], new["needs_version"]) == (2, "0.2.0")


def test_a_recipe_is_stored_as_its_name_and_what_differs() -> None:
    assert QAIGConfig(recipe=RECIPES["best"]).to_dict()["recipe"] == "best"
    assert QAIGConfig(recipe={"name": "fast", "steps": 7}).to_dict()["recipe"] == {"name": "fast", "steps": 7}
    own = Recipe(rounding="gptq", clipping=True)
    stored = QAIGConfig(recipe=own).to_dict()["recipe"]
    assert stored == {"name": "custom", "rounding": "gptq", "clipping": True}
    assert QAIGConfig(recipe=stored).recipe == own
