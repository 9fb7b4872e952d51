import pytest
import torch
from torch import nn
from transformers import (
    GitConfig,
    GitForCausalLM,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from tests.families import FAMILIES, build
from tests.unusual import florence_2
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.plan.allocate import reachable
from transformers_qaig.plan.build import budget_in_bits, list_schemes, make_plan
from transformers_qaig.scheme import WeightScheme, parse_plan, plan_to_dict
from transformers_qaig.structure import find_decoder_blocks, find_input_embeddings, find_lm_head, find_vision_tower


@pytest.fixture(scope="module")
def llava() -> nn.Module:
    return build("llava")[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_the_language_models(family: str) -> None:
    model, _ = build(family)
    blocks = find_decoder_blocks(model)
    assert len(blocks) == model.config.get_text_config().num_hidden_layers
    assert list(blocks.values()) == list(model.get_decoder().layers)
    assert all(model.get_submodule(path) is block for path, block in blocks.items())


def test_plan_of_a_dense_model_covers_every_linear(llava: nn.Module) -> None:
    plan, coverage = make_plan(llava, QAIGConfig(bits=3, group_size=32))
    linears = [p for b, m in find_decoder_blocks(llava).items() for n, c in m.named_modules() if type(c) is nn.Linear
               for p in [f"{b}.{n}"]]  # fmt: skip
    assert sorted(plan) == sorted(linears)
    assert coverage.share == 1
    assert set(plan.values()) == {WeightScheme(3, 32)}
    assert "lm_head" in coverage.unpacked
    assert coverage.total + sum(coverage.unpacked.values()) == sum(p.numel() for p in llava.parameters() if p.ndim > 1)


def test_plan_is_made_on_the_meta_device(llava: nn.Module) -> None:
    with torch.device("meta"):
        meta = type(llava)(llava.config)
    assert make_plan(meta, QAIGConfig())[0] == make_plan(llava, QAIGConfig())[0]


def test_stored_bits_are_what_the_packed_tensors_take(llava: nn.Module) -> None:
    _, coverage = make_plan(llava, QAIGConfig(bits=3, group_size=32))
    # fp32 scales of 32 bits and zero points of 3 bits for every 32 weights
    assert coverage.bits_per_weight == pytest.approx(3 + (32 + 3) / 32)


def test_overrides_and_exceptions(llava: nn.Module) -> None:
    config = QAIGConfig(
        overrides={"*.down_proj": 8, "*.layers.1.*.down_proj": {"bits": 2, "group_size": 32}, "o_proj": {"sym": True}},
        modules_to_not_convert=["*.layers.0.self_attn.*"],
    )
    plan, coverage = make_plan(llava, config)
    get = {path.split("layers.")[1]: entry for path, entry in plan.items()}
    assert get["0.mlp.down_proj"].bits == 8
    assert get["1.mlp.down_proj"] == WeightScheme(2, 32)
    assert get["1.self_attn.o_proj"].sym is True
    assert not any(path.startswith("0.self_attn") for path in get)
    assert sum("modules_to_not_convert" in reason for _, reason in coverage.skipped.values()) == 4


def test_options_under_a_budget_and_overrides_that_leave_one(llava: nn.Module) -> None:
    config = QAIGConfig(
        group_size=32, budget=BitBudget(4, candidates=(2, 3, 8)), overrides={"*.down_proj": 4, "o_proj": {"sym": True}}
    )
    options, coverage = list_schemes(llava, config)
    for path, choices in options.items():
        widths = [option.scheme.bits for option in choices]
        assert widths == ([4] if path.endswith("down_proj") else [2, 3, 8])
        assert all(option.scheme.sym is path.endswith("o_proj") for option in choices)
        assert [option.size for option in choices] == sorted(option.size for option in choices)
    assert coverage.stored_bits == 0
    with pytest.raises(ValueError, match="several `bits`"):
        make_plan(llava, config)


def test_a_budget_below_the_smallest_choice_names_the_range(llava: nn.Module) -> None:
    config = QAIGConfig(budget=BitBudget(2.5, candidates=(2, 3)), group_size=32)
    options, coverage = list_schemes(llava, config)
    with pytest.raises(
        ValueError, match=r"3\.062 to 4\.094 stored bits"
    ):  # fp32 scales: 1.06 bits at 2 bits, 1.09 at 3
        budget_in_bits(config, coverage, reachable(options))
    assert budget_in_bits(QAIGConfig(budget=3.5), coverage, reachable(options)) == 3.5 * coverage.packed


def test_a_size_counts_the_whole_model(llava: nn.Module) -> None:
    options, coverage = list_schemes(llava, QAIGConfig(budget=4, group_size=32))
    whole = sum(8 * t.element_size() * t.numel() for t in llava.state_dict().values())
    assert coverage.other_bits == whole - 32 * coverage.packed + 2 * 64 * len(options)
    budget = budget_in_bits(QAIGConfig(budget="400KB"), coverage, reachable(options))
    assert budget == 8 * 400_000 - coverage.other_bits
    with pytest.raises(ValueError, match="are not packed"):
        budget_in_bits(QAIGConfig(budget="20KB"), coverage, reachable(options))


def test_a_given_plan_is_followed_and_overridden(llava: nn.Module) -> None:
    path = next(iter(make_plan(llava, QAIGConfig())[0]))
    given = {path: {"bits": 5, "group_size": 32, "sym": True}}
    plan, coverage = make_plan(llava, QAIGConfig(plan=given))
    assert plan == parse_plan(given)
    assert "not in the given plan" in next(iter(coverage.skipped.values()))[1]
    assert make_plan(llava, QAIGConfig(plan=given, overrides={"q_proj": 3}))[0][path].bits == 3
    with pytest.raises(ValueError, match=r"layers\.9"):
        make_plan(llava, QAIGConfig(plan={"model.layers.9.q_proj": given[path]}))


def test_what_is_not_to_be_converted_is_taken_out_of_a_given_plan(llava: nn.Module) -> None:
    given, _ = make_plan(llava, QAIGConfig(vision_bits=4, embedding_bits=5))
    left = ["*.layers.0.*", "embed_tokens"]
    plan, coverage = make_plan(llava, QAIGConfig(plan=plan_to_dict(given), modules_to_not_convert=left))
    assert plan == {p: e for p, e in given.items() if ".layers.0." not in p and not p.endswith("embed_tokens")}
    reasons = {reason for _, reason in coverage.skipped.values()}
    assert reasons == {"listed in `modules_to_not_convert`"}


def test_nothing_to_pack_says_why(llava: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"can be packed: .* is listed in `modules_to_not_convert`\."):
        make_plan(llava, QAIGConfig(modules_to_not_convert=["language_model"]))


def test_a_pattern_that_matches_nothing_is_an_error(llava: nn.Module) -> None:
    with pytest.raises(ValueError, match="w1_proj"):
        make_plan(llava, QAIGConfig(overrides={"*.w1_proj": 4}))


def test_experts_of_an_unknown_kind_count_and_stop_the_run() -> None:
    model, _ = build("qwen3_vl_moe")
    for block in find_decoder_blocks(model).values():
        block.mlp.experts.register_parameter("other", nn.Parameter(torch.zeros(4, 64, 64)))
    plan, coverage = make_plan(model, QAIGConfig())
    assert coverage.share < 0.9
    assert any("experts" in path for path in coverage.skipped)
    assert plan  # attention could be packed
    with pytest.raises(ValueError, match=r"(?s)min_coverage.*experts"):
        coverage.require(0.9)


def test_group_that_does_not_divide_is_refitted_and_logged(llava: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "transformers.qaig")
    plan, _ = make_plan(llava, QAIGConfig(group_size=40))  # widths 64 and 96
    sizes = {path.rsplit(".", 1)[1]: entry.group_size for path, entry in plan.items()}
    assert sizes["q_proj"] == 32
    assert sizes["down_proj"] == 32
    assert "does not divide" in caplog.text


def test_small_linears_are_left_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big, self.router = nn.Linear(64, 64), nn.Linear(64, 4)

    model = nn.Module()
    model.layers = nn.ModuleList([Block()])
    plan, coverage = make_plan(model, QAIGConfig())
    assert list(plan) == ["layers.0.big"]
    assert "too small" in coverage.skipped["layers.0.router"][1]


def test_a_tower_that_the_decoder_owns_is_no_block_of_the_language_model() -> None:
    """GIT's decoder holds its image encoder, Chameleon's its image tokenizer."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = GitConfig(
        vision_config=vision,
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    with torch.device("meta"):
        model = GitForCausalLM(config)
    assert list(find_decoder_blocks(model)) == ["git.encoder.layer.0", "git.encoder.layer.1"]


# -- outside the blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_and_the_projector_are_found(family: str) -> None:
    model, _ = build(family)
    found = find_vision_tower(model)
    inside = {id(module) for part in found.values() for module in part.modules()}
    text = {id(module) for module in model.get_decoder().modules()}
    assert not inside & text
    rest = [n for n, m in model.named_modules() if type(m) is nn.Linear and id(m) not in inside | text]
    assert rest == ["lm_head"]
    assert find_lm_head(model).path == "lm_head"
    assert find_input_embeddings(model).module is model.get_input_embeddings()


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
    assert not make_plan(llava, QAIGConfig())[1].extra_plan


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


def test_a_linear_that_is_one_tensor_with_another_is_left_out(llava, monkeypatch) -> None:
    q, k = (f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1))
    monkeypatch.setattr(llava, "all_tied_weights_keys", {f"{k}.weight": f"{q}.weight"})
    plan, coverage = make_plan(llava, QAIGConfig(group_size=32, calibration={"min_coverage": 0}))
    assert {q, k}.isdisjoint(plan)
    assert coverage.skipped[q][1] == f"one tensor with {k}.weight, which stays as it is"
