"""The plugin for SGLang, on names of SGLang's alone: its classes do here what the plugin needs of them."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.engines.test_shards import K, linear
from transformers_qaig import QAIGLinear
from transformers_qaig.config import QUANT_METHOD
from transformers_qaig.integrations import sglang as plugin

ROOM = "transformers_qaig.integrations.sglang"
TABLES = ("QUANTIZATION_METHODS", "CPU_QUANTIZATION_METHODS")
CLASSES = {
    "layers.linear": ("LinearBase",),
    "layers.quantization.base_config": ("LinearMethodBase", "QuantizationConfig"),
    "layers.quantization.unquant": ("UnquantizedLinearMethod",),
    "layers.vocab_parallel_embedding": ("VocabParallelEmbedding",),
}
PACKAGES = ("", ".srt", ".srt.arg_groups", ".srt.layers", ".srt.layers.quantization")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


class Names(SimpleNamespace):
    """What the tests need of SGLang."""


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    def module(name: str, **members: Any) -> None:
        made = ModuleType(f"sglang{name}")
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, f"sglang{name}", made)

    for name in PACKAGES:
        module(name)
    made = {
        each: type(each, (nn.Module,) if each in ("LinearBase", "VocabParallelEmbedding") else (), {})
        for classes in CLASSES.values()
        for each in classes
    }
    made["ParallelLMHead"] = type("ParallelLMHead", (made["VocabParallelEmbedding"],), {})
    for name, classes in CLASSES.items():
        module(f".srt.{name}", **{each: made[each] for each in classes})
    sys.modules["sglang.srt.layers.vocab_parallel_embedding"].ParallelLMHead = made["ParallelLMHead"]
    tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    vars(sys.modules["sglang.srt.layers.quantization"]).update(tables)
    sys.modules["sglang.srt.layers"].quantization = sys.modules["sglang.srt.layers.quantization"]
    module(".srt.arg_groups.choices", QUANTIZATION_CHOICES=["awq"])
    yield Names(**made, tables=tables, choices=sys.modules["sglang.srt.arg_groups.choices"].QUANTIZATION_CHOICES)
    for name in ("config", "layers"):
        sys.modules.pop(f"{ROOM}.{name}", None)


def config(layers: dict[str, QAIGLinear], **added: Any) -> dict[str, Any]:
    """`quantization_config` of a saved model, and what SGLang adds to it."""
    plan = {path: layer.scheme.to_dict() for path, layer in layers.items()}
    return {"quant_method": QUANT_METHOD, "bits": 4, "plan": plan, "packed_modules_mapping": {}, **added}


def served(sglang: Names, layers: dict[str, QAIGLinear], **added: Any) -> Any:
    plugin.register()
    return sglang.tables[TABLES[0]][QUANT_METHOD].from_config(config(layers, **added))


def load(layer: nn.Module, packed: QAIGLinear, shard: Any = None) -> None:
    for name, tensor in packed.state_dict().items():
        parameter = layer.get_parameter(name)
        parameter.weight_loader(parameter, tensor, *(() if shard is None else (shard,)))


def test_the_method_is_in_every_table_once(sglang: Names) -> None:
    plugin.register()
    plugin.register()
    assert all(QUANT_METHOD in table for table in sglang.tables.values())
    assert sglang.choices == ["awq", QUANT_METHOD]


def test_a_fused_layer_computes_what_its_parts_do(sglang: Names) -> None:
    parts = {f"{ATTENTION}.{name}_proj": linear(bits, 32) for name, bits in zip("qkv", (2, 3, 3))}
    layer, x = sglang.LinearBase(), torch.randn(3, K)
    method = served(sglang, parts).get_quant_method(layer, f"{ATTENTION}.qkv_proj")
    method.create_weights(layer, K, [32, 32, 32], K, 96, torch.float32, weight_loader=None)
    for shard, packed in zip("qkv", parts.values()):
        load(layer, packed, shard)
    method.process_weights_after_loading(layer)
    expected = torch.cat([packed(x) for packed in parts.values()], -1)
    torch.testing.assert_close(method.apply(layer, x), expected, rtol=1e-5, atol=1e-4)


def test_names_are_translated_and_a_dense_layer_stays_dense(sglang: Names) -> None:
    found = served(sglang, {f"model.language_{MLP}.down_proj": linear(4, 32)})
    found.apply_weight_name_mapper(
        SimpleNamespace(_map_name=lambda name: name.replace("model.language_model", "model"))
    )
    assert type(found.get_quant_method(sglang.LinearBase(), f"{MLP}.down_proj")).__name__ == "QAIGLinearMethod"
    assert isinstance(found.get_quant_method(sglang.LinearBase(), f"{MLP}.other"), sglang.UnquantizedLinearMethod)
    assert found.get_quant_method(nn.Linear(1, 1), f"{MLP}.down_proj") is None


def test_a_packed_weight_without_a_layer_is_an_error_and_not_left_out(sglang: Names) -> None:
    found = served(sglang, {f"{MLP}.down_proj": linear(4, 32), "model.vision_tower.blocks.0.qkv": linear(4, 32)})
    method = found.get_quant_method(sglang.LinearBase(), f"{MLP}.down_proj")
    with pytest.raises(
        NotImplementedError, match=r"no layer of its own for 1 packed weights, such as '.*blocks\.0\.qkv"
    ):
        method.process_weights_after_loading(sglang.LinearBase())


def test_a_layer_in_pieces_is_refused(sglang: Names) -> None:
    method = served(sglang, {f"{MLP}.down_proj": linear(4, 32)}).get_quant_method(
        sglang.LinearBase(), f"{MLP}.down_proj"
    )
    with pytest.raises(NotImplementedError, match="--tp-size 1"):
        method.create_weights(sglang.LinearBase(), K // 2, [32], K, 32, torch.float32)


def test_experts_are_refused(sglang: Names) -> None:
    with pytest.raises(NotImplementedError, match="packed experts"):
        served(sglang, {f"{MLP}.experts.*.down_proj": linear(4, 32)})


@pytest.mark.parametrize(
    ("model_type", "packed", "asked", "is_refused"),
    [
        ("llama4", "q_proj", "qkv_proj", True),
        ("llama4", "k_proj", "qkv_proj", True),
        ("llama4", "v_proj", "qkv_proj", False),
        ("llama4", "o_proj", "o_proj", False),
        ("llama4_text", "q_proj", "qkv_proj", False),
        ("persimmon", "query_key_value", "query_key_value", True),
        ("minicpm3", "kv_b_proj", "kv_b_proj", True),
    ],
)
def test_layers_whose_weight_sglang_changes_are_refused(
    model_type: str, packed: str, asked: str, is_refused: bool, sglang: Names
) -> None:
    """SGLang permutes rows of `weight` alone, and splits that of latent attention."""
    model = SimpleNamespace(model_type=model_type, get_text_config=lambda: SimpleNamespace(tie_word_embeddings=False))
    found = served(sglang, {f"{ATTENTION}.{packed}": linear(4, 32)}, hf_config=model)
    with pytest.raises(NotImplementedError, match="changes the weights") if is_refused else nullcontext():
        found.get_quant_method(sglang.LinearBase(), f"{ATTENTION}.{asked}")


def test_a_tower_of_llama_4_is_loaded_as_it_is(sglang: Names) -> None:
    model = SimpleNamespace(model_type="llama4", get_text_config=lambda: SimpleNamespace(tie_word_embeddings=False))
    found = served(sglang, {f"vision_{ATTENTION}.q_proj": linear(4, 32)}, hf_config=model)
    assert found.get_quant_method(sglang.LinearBase(), f"vision_{ATTENTION}.qkv_proj") is not None


def test_tied_embeddings_are_the_head_as_soon_as_they_are_asked_for_logits(sglang: Names) -> None:
    packed, x = linear(4, 40), torch.randn(3, K)
    layer = sglang.VocabParallelEmbedding()
    layer.org_vocab_size = 40
    method = served(sglang, {"model.embed_tokens": packed}).get_quant_method(layer, "model.embed_tokens")
    method.create_weights(layer, K, [64], K, 64, torch.float32)
    guard = layer.get_parameter("weight")
    guard.weight_loader(guard, packed.weight_packed)  # as models do whose head is tied
    load(layer, packed)
    method.process_weights_after_loading(layer)
    ids = torch.tensor([39, 0, 7])
    torch.testing.assert_close(method.embedding(layer, ids), packed.dequantize()[ids])
    torch.testing.assert_close(method.apply(layer, x), packed(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(method.embedding(layer, ids), packed.dequantize()[ids])


def test_a_head_of_its_own_that_is_tied_to_packed_embeddings_is_refused(sglang: Names) -> None:
    model = SimpleNamespace(get_text_config=lambda: SimpleNamespace(tie_word_embeddings=True))
    found = served(sglang, {"model.embed_tokens": linear(4, 40)}, hf_config=model)
    with pytest.raises(NotImplementedError, match="lm_head is tied to packed embeddings"):
        found.get_quant_method(sglang.ParallelLMHead(), "lm_head")


def test_a_packed_head_adds_its_bias_once(sglang: Names) -> None:
    packed, x = linear(4, 40), torch.randn(3, K)
    head = sglang.ParallelLMHead()
    head.org_vocab_size, bias = 40, torch.randn(64)
    method = served(sglang, {"lm_head": packed}).get_quant_method(head, "lm_head")
    method.create_weights(head, K, [64], K, 64, torch.float32)
    load(head, packed)
    method.process_weights_after_loading(head)
    torch.testing.assert_close(method.apply(head, x, bias), packed(x) + bias[:40], rtol=1e-5, atol=1e-4)
