"""Which layers of vLLM get which scheme."""

import pytest

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.integrations.engines.served_plan import ServedPlan

LAYER = "model.language_model.layers.0"
W3, W4, W8 = (WeightScheme(bits, 64) for bits in (3, 4, 8))
PLAN = {
    f"{LAYER}.self_attn.q_proj": W3,
    f"{LAYER}.self_attn.k_proj": W4,
    f"{LAYER}.self_attn.v_proj": W4,
    f"{LAYER}.mlp.gate_proj": W3,
    f"{LAYER}.mlp.down_proj": W8,
    "model.visual.blocks.0.attn.qkv": W8,
    "model.language_model.embed_tokens": W3,
    "lm_head": W8,
}


def renamed() -> ServedPlan:
    plan = ServedPlan(PLAN)
    plan.rename(lambda name: name.replace("model.language_model.", "language_model.model.").replace("model.vis", "vis"))
    return plan


def test_every_part_of_a_fused_layer_keeps_its_scheme() -> None:
    assert renamed().linear("language_model.model.layers.0.self_attn.qkv_proj", {}) == [W3, W4, W4]


def test_a_model_that_holds_another_may_not_say_what_that_one_fuses() -> None:
    """LFM2-VL's class does not."""
    plan = ServedPlan({"layers.0.feed_forward.w1": W3, "layers.0.feed_forward.w3": W4})
    assert plan.linear("layers.0.feed_forward.w13", {}) == [W3, W4]


def test_a_part_that_is_not_packed_is_none() -> None:
    assert renamed().linear("language_model.model.layers.0.mlp.gate_up_proj", {}) == [W3, None]


def test_a_layer_that_the_file_holds_whole_has_one_scheme() -> None:
    assert renamed().linear("visual.blocks.0.attn.qkv", {"qkv": ["qkv"]}) == [W8]


def test_a_model_says_what_it_fuses() -> None:
    fused = {"all": ["gate_proj", "down_proj"]}
    assert renamed().linear("language_model.model.layers.0.mlp.all", fused) == [W3, W8]


def test_a_tower_fuses_what_the_language_model_holds_whole() -> None:
    """GLM-4V's class says that its files hold gate and up as one, which is so in its language model."""
    fused = {"gate_up_proj": ["gate_up_proj"]}
    assert renamed().linear("language_model.model.layers.0.mlp.gate_up_proj", fused) == [W3, None]


def test_other_layers_are_not_packed() -> None:
    assert renamed().linear("language_model.model.layers.0.self_attn.o_proj", {}) is None
    assert renamed().rows("other_head") is None


def test_embeddings_without_a_name_are_found() -> None:
    assert renamed().rows("") == W3
    assert renamed().rows("", is_head=True) == W8
    assert ServedPlan({**PLAN, "second.embed_tokens": W4}).rows("") is None  # one of two
    assert ServedPlan({"transformer.wte": W4, "transformer.h.0.fc_in": W3}).rows("") == W4
    assert ServedPlan({"embed_out": W4}).rows("lm_head", is_head=True) == W4


def test_a_head_whose_name_lacks_the_part_of_the_model_is_found() -> None:
    """Qwen3-VL's class calls it `lm_head`, and renames the file's to `language_model.lm_head`."""
    plan = ServedPlan({"language_model.lm_head": W8})
    assert plan.rows("other_head", is_head=True) is None
    assert plan.rows("lm_head", is_head=True) == W8
    assert not plan.unused


def test_a_name_that_begins_with_a_dot_is_found_without_it() -> None:
    """StableLM's class puts the name of its head behind an empty one."""
    plan = ServedPlan(PLAN)
    assert plan.rows(".lm_head", is_head=True) == W8
    assert plan.linear(".model.language_model.layers.0.self_attn.qkv_proj", {}) == [W3, W4, W4]
    assert not plan.has_tower_level


def test_what_no_layer_asked_for_is_told() -> None:
    plan = renamed()
    plan.linear("visual.blocks.0.attn.qkv", {})
    plan.rename(lambda name: name)  # the model's parts rename it again
    assert "visual.blocks.0.attn.qkv" not in plan.unused
    assert "lm_head" in plan.unused


def test_a_level_of_modules_that_only_one_side_has_does_not_matter() -> None:
    for path in ("vision_tower.encoder.layers.0.fc1", "vision_tower.vision_model.encoder.layers.0.fc1"):
        plan = ServedPlan({path: W4})
        assert plan.linear("vision_tower.vision_model.encoder.layers.0.fc1", {}) == [W4]
        assert plan.has_tower_level


STACK = "model.layers.3.mlp.experts"


@pytest.mark.parametrize("name", ["model.layers.3.block_sparse_moe.experts", STACK])
def test_the_only_stack_of_a_block_is_found_by_another_name(name: str) -> None:
    """Mixtral's is called otherwise in its files, and in vLLM, than in Transformers."""
    plan = ServedPlan({f"{STACK}.0-1.down_proj": W3, f"{STACK}.2.down_proj": W4, "model.layers.13.x.experts.*.up": W8})
    assert plan.experts(name, 3)["down_proj"].bits == (3, 3, 4)
    assert not plan.experts("model.layers.4.mlp.experts", 3)


def test_a_block_that_the_engine_knows_in_part_is_refused() -> None:
    plan = ServedPlan({f"{STACK}.*.down_proj": W3, "model.layers.3.attn.o": W4, "tower.layers.0.fc": W4})
    plan.check_blocks()  # nothing of a block is asked for where a part of the model is not served
    plan.linear("model.layers.3.attn.o", {})
    with pytest.raises(ValueError, match=r"no layer for .*experts.*\(1 such\)"):
        plan.check_blocks()
    plan.experts(STACK, 4)
    plan.check_blocks()
    assert plan.unused == ["tower.layers.0.fc"]


def test_projections_of_experts_keep_their_names() -> None:
    plan = ServedPlan({f"{STACK}.*.down_proj": W3, "model.layers.3.mlp.down_proj": W4})
    plan.rename(lambda name: name.replace(".down_proj.", ".w2.").replace("model.", "language_model."))
    assert plan.experts("language_model.layers.3.mlp.experts", 2)["down_proj"].bits == (3, 3)
    assert plan.linear("language_model.layers.3.mlp.w2", {}) == [W4]
