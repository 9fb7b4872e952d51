"""Settings of a run: what the configuration says, and which tokens choose a damping."""

from pathlib import Path

import torch
from torch import nn

from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.calibration.quantizer_settings import QuantizerSettings, settings_of
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.equalization.finder import GroupFinder
from transformers_qaig.token_weights.uniform import Uniform

FINDER = GroupFinder((), 0)


def test_settings_are_those_of_the_configuration(tmp_path: Path) -> None:
    calibration = CalibrationConfig(expert_memory="2GB", work_dir=tmp_path, moe_calibrate_all_experts=True)
    config = QAIGConfig(seed=7, calibration=calibration)
    found = settings_of(config, recipe_of("best"), FINDER)
    assert (found.seed, found.all_experts, found.expert_memory) == (7, True, 2_000_000_000)
    assert settings_of(QAIGConfig(), recipe_of("best"), FINDER).expert_memory is None


def test_a_block_without_weights_of_its_own_counts_all_real_tokens() -> None:
    known, other = nn.Identity(), nn.Identity()
    weights = {known: {0: torch.tensor([[1.0, 0.0]])}}
    found = QuantizerSettings(recipe_of("gptq"), FINDER, Uniform(), weights)
    assert found.damping_weights_of(known) is weights[known]
    assert found.damping_weights_of(other) == {}


def test_without_weights_no_damping_is_chosen() -> None:
    found = settings_of(QAIGConfig(), recipe_of("gptq"), FINDER)
    assert found.damping_weights_of(nn.Identity()) is None
