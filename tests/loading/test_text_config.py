"""The text config of a packed composite names the method, and the settings stay in one place."""

import json
from pathlib import Path

import pytest
from transformers import LlavaConfig, Qwen3Config

from transformers_qaig.loading.text_config import mark_text_config, unmark_text_config, whole_settings

SETTINGS = {"quant_method": "qaig", "plan": {"fc": {"bits": 4}}}


def test_a_composite_is_marked_and_unmarked() -> None:
    config = LlavaConfig()
    mark_text_config(config)
    assert config.text_config.quantization_config == {"quant_method": "qaig"}
    unmark_text_config(config)
    assert not hasattr(config.text_config, "quantization_config")


def test_a_text_model_has_no_other_config_to_mark() -> None:
    config = Qwen3Config()
    mark_text_config(config)
    assert not hasattr(config, "quantization_config")


def test_the_whole_model_s_settings_are_read_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": SETTINGS}))
    assert whole_settings([str(tmp_path / "model.safetensors")]) == SETTINGS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"quantization_config": {**SETTINGS, "plan": {}}}), "holds no `plan`"),
        (json.dumps({"quantization_config": {**SETTINGS, "quant_method": "gptq"}}), "holds no `plan`"),
    ],
)
def test_a_config_without_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        whole_settings([str(tmp_path / "model.safetensors")])
