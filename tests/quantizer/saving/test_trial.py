"""A model that could not be saved, or would come back as another, is refused before it is calibrated."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig
from transformers import AutoModelForImageTextToText as Auto
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter

from tests.families import build
from tests.lifecycle import logits
from transformers_qaig import QAIGConfig
from transformers_qaig.loading.text_config import unmark_text_config


def quantize(folder: Path, settings: dict | None = None, **arguments: object) -> nn.Module:
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn", **(settings or {}))
    return Auto.from_pretrained(folder, quantization_config=config, **arguments)


@pytest.fixture
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers_qaig.calibration.pipeline.calibrate", lambda *_: pytest.fail("calibrated"))


@pytest.fixture
def fused(llava: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A LLaVA whose files hold gate and up as one tensor, which Transformers splits on loading and joins on saving."""
    ending = request.param
    known = get_checkpoint_conversion_mapping("llava")
    converter = WeightConverter(
        f"mlp.gate_up_proj{ending}", [f"mlp.gate_proj{ending}", f"mlp.up_proj{ending}"], operations=[Chunk(dim=0)]
    )
    register_checkpoint_conversion_mapping("llava", [*known, converter], overwrite=True)
    folder = shutil.copytree(llava, tmp_path / "fused")
    build("llava")[0].save_pretrained(folder)  # a loaded one would be saved as it came
    yield folder
    register_checkpoint_conversion_mapping("llava", known, overwrite=True)


@pytest.mark.parametrize("fused", ["", r".weight(?!_)"], indirect=True)
def test_packed_names_come_back_though_a_converter_matches_them(fused: Path, tmp_path: Path) -> None:
    model = quantize(fused)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(Auto.from_pretrained(tmp_path / "saved"), fused), logits(model, fused))


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("fused", [r".weight(?!_)"], indirect=True)
def test_a_joint_weight_of_which_half_is_packed_is_refused(fused: Path) -> None:
    with pytest.raises(ValueError, match=r"half of .*gate_up_proj\.weight"):
        quantize(fused, {"modules_to_not_convert": ["*.gate_proj"]})


@pytest.mark.usefixtures("uncalibrated")
def test_a_generation_config_that_transformers_does_not_save_is_refused(llava: Path) -> None:
    with pytest.raises(ValueError, match=re.compile("generation config.*temperature", re.DOTALL)):
        quantize(llava, generation_config=GenerationConfig(do_sample=False, temperature=0.3))


def test_what_a_published_generation_config_says_can_be_saved_or_is_refused(llava: Path, tmp_path: Path) -> None:
    """Transformers saves it as it came since 5.24, and before did not."""
    folder = shutil.copytree(llava, tmp_path / "published")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": False, "temperature": 0.3}))
    full = Auto.from_pretrained(folder)
    try:
        full.save_pretrained(tmp_path / "full")
    except ValueError:
        with pytest.raises(ValueError, match="generation config"):
            quantize(folder)
    else:
        quantize(folder).save_pretrained(tmp_path / "saved")


@pytest.mark.usefixtures("uncalibrated")
def test_a_model_config_that_cannot_be_written_is_refused(llava: Path) -> None:
    config = AutoConfig.from_pretrained(llava)
    config.something = {1, 2}
    with pytest.raises(ValueError, match=r"config\.json"):
        quantize(llava, config=config)


def test_the_trial_changes_nothing_of_the_model(llava: Path) -> None:
    model = quantize(llava)
    unmark_text_config(model.config)
    full = Auto.from_pretrained(llava)
    ours, theirs = model.config.to_dict(), full.config.to_dict()
    assert {k: v for k, v in ours.items() if k != "quantization_config"} == theirs
    assert model.generation_config.to_dict() == full.generation_config.to_dict()
