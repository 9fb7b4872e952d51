"""How much of the models with experts is packed at the sizes that their configurations have by default."""

from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.sweep.models import class_of
from transformers_qaig import QAIGConfig
from transformers_qaig.plan.build import make_plan

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_vl_moe": {},
    "qwen3_5_moe": {},
    "glm4v_moe": {},
    "kimi_k25": {},
    "llama4": {},
    "ernie4_5_vl_moe": {},
    "minimax_m3_vl": {},
    "step3p7": {},
    "internvl": {"text_config": {"model_type": "qwen3_moe"}},
    "gemma4": {
        "text_config": {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    },
    "qwen3_omni_moe_thinker": {},
    "inkling_mm_model": {},
    "mixtral": {},
    "qwen3_moe": {},
    "gpt_oss": {},
    "deepseek_v3": {},
    "granitemoe": {},
    "nemotron_h": {},
    "longcat_flash": {},
}
"""Family → what its configuration needs to have experts, besides what it has by default."""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_nearly_all_weights_of_the_blocks_are_packed(family: str) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip("this Transformers has no such family")
    with torch.device("meta"):
        model = class_of(family)(CONFIG_MAPPING[family](**FAMILIES[family]))
    plan, coverage = make_plan(model, QAIGConfig(recipe="rtn", group_size=128))
    assert any(".experts." in path for path in plan)
    assert coverage.packed_fraction > 0.99
