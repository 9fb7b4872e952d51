"""What a faster and a smaller setting would have been."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from transformers_qaig import QAIGConfig
from transformers_qaig.plan.alternatives import faster_setting, smaller_setting
from transformers_qaig.plan.build import make_plan


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    shapes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(Qwen3Config(**shapes, **heads), dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [("best", "recipe='default', "), ("default", "recipe='gptq', "), ("fast", "which reads no data"), ("rtn", None)],
)
def test_the_next_faster_recipe_takes_a_share_of_the_arithmetic(
    model: torch.nn.Module, recipe: str, said: str | None
) -> None:
    config = QAIGConfig(bits=3, recipe=recipe, group_size=64)
    found = faster_setting(model, config, make_plan(model, config)[1], 128)
    assert (said in found) if said else not found
    if "arithmetic" in found:
        assert 1 <= int(found.split()[-4].removesuffix("%")) < 100


def test_one_bit_less_saves_a_bit_of_every_packed_weight(model: torch.nn.Module) -> None:
    sizes = {bits: make_plan(model, QAIGConfig(bits=bits, group_size=64)) for bits in (2, 3)}
    assert smaller_setting(*sizes[2]) == ""
    before, after = (sizes[bits][1].whole.saved for bits in (3, 2))
    assert before - after == pytest.approx(sizes[3][1].packed, rel=0.02)  # zero points have a bit less, too
    assert smaller_setting(*sizes[3]).startswith("bits=2, ")
