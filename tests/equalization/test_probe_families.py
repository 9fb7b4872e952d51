"""The groups of every family's blocks."""

import pytest
import torch
from torch import Tensor, nn

from tests.families import FAMILIES, build, samples
from transformers_qaig.equalization import find_groups

STANDARD = {
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): "input_layernorm",
    ("self_attn.o_proj",): "self_attn.v_proj",
    ("mlp.gate_proj", "mlp.up_proj"): "post_attention_layernorm",
    ("mlp.down_proj",): "mlp.up_proj",
}
CROSS = {
    ("cross_attn.q_proj",): "input_layernorm",
    ("cross_attn.k_proj", "cross_attn.v_proj"): None,
    ("cross_attn.o_proj",): "cross_attn.v_proj",
}
LINEAR = {
    tuple(f"linear_attn.in_proj_{part}" for part in ("qkv", "z", "b", "a")): "input_layernorm",
    ("linear_attn.out_proj",): "linear_attn.norm",
}
ATTENTION, FEED_FORWARD = dict(list(STANDARD.items())[:2]), dict(list(STANDARD.items())[2:])
EXPECTED = {name: [STANDARD] for name in FAMILIES} | {
    "qwen3_vl_moe": [ATTENTION],
    "qwen3_5": [LINEAR | FEED_FORWARD, STANDARD],
    "gemma3": [STANDARD | {("mlp.gate_proj", "mlp.up_proj"): "pre_feedforward_layernorm"}],
    "mllama": [STANDARD, CROSS | FEED_FORWARD],
    "glm4v": [ATTENTION | {("mlp.gate_up_proj",): "post_attention_layernorm", ("mlp.down_proj",): "mlp.gate_up_proj"}],
}
PLUS_ONE = {"gemma3", "paligemma", "qwen3_5"}
CHANNELS = {"self_attn.v_proj": 32, "cross_attn.v_proj": 32, "linear_attn.norm": 16}


@pytest.mark.parametrize("name", EXPECTED)
def test_family(name: str):
    model, processor = build(name)
    (sample,) = samples(processor, 1)
    for block, expected in zip(model.get_decoder().layers, EXPECTED[name], strict=False):
        groups = find_groups(block, *captured(model, block, sample))
        assert {g.linears: g.producer for g in groups} == expected
        for g in groups:
            assert g.plus_one == (name in PLUS_ONE and g.producer is not None and g.producer.endswith("layernorm"))
            assert g.module == (g.linears[0] if len(g.linears) == 1 else g.linears[0].split(".")[0])
            channels = CHANNELS.get(g.producer, len(g.channels)) if g.producer else 1
            assert len(set(g.channels)) == channels
    if name == "glm4v":
        assert groups[-1].channels == tuple(range(96, 192)), "the up half of the fused projection"


def test_vision_blocks():
    model, processor = build("llava")
    block = model.model.vision_tower.encoder.layers[0]
    groups = find_groups(block, *captured(model, block, samples(processor, 1)[0]))
    assert {g.linears: g.producer for g in groups} == {
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): "layer_norm1",
        ("self_attn.out_proj",): "self_attn.v_proj",
        ("mlp.fc1",): "layer_norm2",
        ("mlp.fc2",): None,
    }
    model, processor = build("qwen2_5_vl")
    block = model.model.visual.blocks[0]
    groups = find_groups(block, *captured(model, block, samples(processor, 1)[0]))
    found = {g.linears: g for g in groups}
    assert found[("attn.proj",)].producer == "attn.qkv"
    assert found[("attn.proj",)].channels == tuple(range(64, 96))


class _Captured(Exception):
    pass


def captured(model: nn.Module, block: nn.Module, sample: dict[str, Tensor]) -> tuple[tuple, dict]:
    """(args, kwargs) of the block's call in a forward pass of the model."""

    def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
        raise _Captured(args, kwargs)

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**sample, use_cache=False)
    except _Captured as call:
        return call.args[0], call.args[1]
    finally:
        handle.remove()
    raise AssertionError("the block did not run")
