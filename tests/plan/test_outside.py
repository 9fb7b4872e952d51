"""Tower, projector, embeddings and head in a plan."""

import pytest
import torch
from torch import nn
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from tests.families import build
from tests.tiny_models.encoder_decoders import florence_2
from transformers_qaig import QAIGConfig
from transformers_qaig.formats.scheme import WeightScheme, plan_to_dict
from transformers_qaig.plan.build import make_plan
from transformers_qaig.structure import find_input_embeddings, find_vision_tower


def test_an_audio_tower_is_left_alone() -> None:
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    audio = {"encoder_layers": 2, "d_model": 32, "encoder_ffn_dim": 64, "encoder_attention_heads": 2, "output_dim": 64}
    config = Qwen2_5OmniThinkerConfig(text_config=text, vision_config=vision, audio_config=audio)
    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    (tower,) = find_vision_tower(model)
    assert tower.rpartition(".")[2] == "visual"
    plan, coverage = make_plan(model, QAIGConfig(vision_bits=4))
    assert any("visual" in path for path in plan)
    assert not any("audio" in path for path in plan)
    assert tower.replace("visual", "audio_tower") in coverage.unpacked


def test_nothing_outside_the_blocks_is_packed_unless_asked_for(llava: nn.Module) -> None:
    assert not make_plan(llava, QAIGConfig())[1].outside_plan


def test_each_part_has_its_bits(llava: nn.Module) -> None:
    config = QAIGConfig(bits=3, group_size=32, vision_bits=6, lm_head_bits=8, embedding_bits=5)
    plan, coverage = make_plan(llava, config)
    widths: dict[str, set[int]] = {}
    for path, entry in plan.items():
        widths.setdefault("blocks" if "layers" in path and "language" in path else path.split(".")[-1], set()).add(
            entry.bits
        )
    assert widths.pop("blocks") == {3}
    assert widths.pop("lm_head") == {8}
    assert widths.pop("embed_tokens") == {5}
    assert set.union(*widths.values()) == {6}
    assert coverage.share == 1
    assert coverage.bits_per_weight == pytest.approx(3 + (32 + 3) / 32)  # still about the blocks
    assert plan["model.vision_tower.encoder.layers.0.mlp.fc2"].group_size == -1  # 48 channels
    assert list(coverage.unpacked) == ["model.vision_tower"]  # convolution and positions
    assert coverage.whole.full == sum(8 * t.element_size() * t.numel() for t in llava.state_dict().values())


def test_overrides_and_exceptions_reach_outside_the_blocks(llava: nn.Module) -> None:
    config = QAIGConfig(
        vision_bits=4,
        lm_head_bits=4,
        overrides={"lm_head": {"bits": 8, "group_size": 32}, "*.fc1": 6},
        modules_to_not_convert=["*.vision_tower.*.layers.0.*"],
    )
    plan, _ = make_plan(llava, config)
    assert plan["lm_head"] == WeightScheme(8, 32)
    assert plan["model.vision_tower.encoder.layers.1.mlp.fc1"].bits == 6
    assert not any("vision_tower.encoder.layers.0" in path for path in plan)
    with pytest.raises(ValueError, match="reaches no weight"):
        make_plan(llava, QAIGConfig(overrides={"lm_head": 8}))


def test_a_given_plan_says_what_is_packed_outside_too(llava: nn.Module) -> None:
    given, _ = make_plan(llava, QAIGConfig(vision_bits=4, embedding_bits=5))
    assert make_plan(llava, QAIGConfig(plan=plan_to_dict(given)))[0] == given
    both, _ = make_plan(llava, QAIGConfig(plan=plan_to_dict(given), lm_head_bits=6))
    assert both == {**given, "lm_head": WeightScheme(6, -1)}


def test_tied_tables_need_one_entry() -> None:
    model, _ = build("gemma3")
    table = find_input_embeddings(model).path
    for bits in ({"embedding_bits": 4}, {"lm_head_bits": 4}, {"embedding_bits": 4, "lm_head_bits": 4}):
        plan, coverage = make_plan(model, QAIGConfig(**bits))
        assert plan[table] == plan["lm_head"] == WeightScheme(4, -1)
        assert "lm_head" not in coverage.parts  # stored once
    with pytest.raises(ValueError, match="one tensor cannot have"):
        make_plan(model, QAIGConfig(embedding_bits=4, lm_head_bits=8))
    with pytest.raises(ValueError, match="need one entry"):
        make_plan(model, QAIGConfig(embedding_bits=4, overrides={"lm_head": 8}))


def test_parts_that_are_not_there_are_an_error(llava: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"lm_head_bits.*LlavaModel has none"):
        make_plan(llava.model, QAIGConfig(lm_head_bits=4))
    with pytest.raises(ValueError, match=r"vision_bits.*no vision tower"):
        make_plan(llava.model.language_model, QAIGConfig(vision_bits=4))


@pytest.mark.parametrize("name", ["embedding_bits", "lm_head_bits"])
def test_a_table_with_three_names_is_refused_by_the_setting_that_asked(name: str) -> None:
    model, _ = florence_2()
    with pytest.raises(ValueError, match=rf"^`{name}`: .* is one tensor with .*decoder\.embed_tokens"):
        make_plan(model, QAIGConfig(group_size=32, calibration={"min_coverage": 0}, **{name: 4}))
