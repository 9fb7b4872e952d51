"""Tower, projector, embeddings and head in a plan."""

import pytest
import torch
from torch import nn
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from tests.families import build
from tests.tiny_models.encoder_decoders import florence_2
from transformers_qaig import QAIGConfig
from transformers_qaig.formats.scheme import WeightScheme, plan_to_dict
from transformers_qaig.plan.build import list_schemes, make_plan
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
    assert coverage.packed_fraction == 1
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


def test_under_a_budget_for_the_file_every_weight_may_have_any_width_or_stay(llava: nn.Module) -> None:
    options, coverage = list_schemes(llava, QAIGConfig(group_size=32, budget="2x"))
    assert {weight.part for weight in coverage.outside_choices.values()} == {
        "model.vision_tower", "model.multi_modal_projector", "model.language_model.embed_tokens", "lm_head"
    }  # fmt: skip
    for path, weight in coverage.outside_choices.items():
        tensor = llava.get_submodule(path).get_parameter("weight")
        assert [option.bits for option in options[path]] == [2, 3, 4, 8, 32]
        packed, stays = options[path][0], options[path][-1]
        assert (stays.scheme, stays.size, stays.cost) == (None, 32 * tensor.numel(), 0.0)
        assert packed.size == packed.scheme.stored_bits(*tensor.shape, 32) + 128  # two int64 for its shape
        assert weight.elements == tensor.numel()
    assert all(o.scheme is not None for p, ways in options.items() if p not in coverage.outside_choices for o in ways)
    whole = sum(tensor.numel() for tensor in llava.state_dict().values())
    assert coverage.bfloat16 == 16 * whole
    stays = {path: ways[-1] for path, ways in options.items()}
    blocks = [option.size + 128 for path, option in stays.items() if path not in coverage.outside_choices]
    assert coverage.with_choice(stays).whole.saved == 32 * (whole - coverage.packed) + sum(blocks)


def test_a_budget_in_bits_leaves_them_alone(llava: nn.Module) -> None:
    options, coverage = list_schemes(llava, QAIGConfig(group_size=32, budget=3.2))
    assert not coverage.outside_choices
    assert not any("vision_tower" in path or "lm_head" in path for path in options)


def test_an_override_of_the_bits_fixes_and_one_of_the_group_size_does_not(llava: nn.Module) -> None:
    overrides = {"lm_head": 6, "*.fc1": {"group_size": -1}}
    options, coverage = list_schemes(llava, QAIGConfig(group_size=32, budget="2x", overrides=overrides))
    assert coverage.outside_plan == {"lm_head": WeightScheme(6, 32)}
    assert "lm_head" not in options
    wide = options["model.vision_tower.encoder.layers.0.mlp.fc1"]
    assert [option.scheme and option.scheme.group_size for option in wide] == [-1, -1, -1, -1, None]


def test_a_tied_tensor_is_one_weight_to_choose_for() -> None:
    model, _ = build("gemma3")
    table = find_input_embeddings(model).path
    options, coverage = list_schemes(model, QAIGConfig(group_size=32, budget="2x"))
    assert "lm_head" not in options
    assert coverage.outside_choices[table].also == "lm_head"
    assert "lm_head" not in coverage.parts
    chosen = {path: ways[0] for path, ways in options.items()}
    taken = coverage.with_choice(chosen)
    assert taken.outside_plan["lm_head"] == taken.outside_plan[table] == chosen[table].scheme
    assert taken.parts[table].saved == chosen[table].size
    for named in ("lm_head", table):
        found = list_schemes(model, QAIGConfig(group_size=32, budget="2x", overrides={named: 8}))[1]
        assert found.outside_plan == dict.fromkeys([table, "lm_head"], WeightScheme(8, 32))
        left = list_schemes(model, QAIGConfig(group_size=32, budget="2x", modules_to_not_convert=[named]))[1]
        assert table not in left.outside_choices
        assert not left.outside_plan
    with pytest.raises(ValueError, match="need one entry"):
        list_schemes(model, QAIGConfig(group_size=32, budget="2x", overrides={"lm_head": 8, table: 4}))


def test_a_table_with_three_names_stays_where_nobody_asked_for_it() -> None:
    model, _ = florence_2()
    config = QAIGConfig(group_size=32, budget="2x", calibration={"min_coverage": 0})
    assert not any("shared" in path or "lm_head" in path for path in list_schemes(model, config)[1].outside_choices)
