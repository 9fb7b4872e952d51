"""The plugin with SGLang's own layers, where its sources can be imported. No engine and no GPU is needed."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.engines.test_shards import K, linear
from tests.integrations.sglang.test_plugin import config, load
from tests.torchvision_on_cpu import make_importable
from transformers_qaig.config import QUANT_METHOD

make_importable()
sglang = pytest.importorskip("sglang.srt.plugins", exc_type=ImportError)
HEAD, ROWS = 16, 64


@pytest.fixture
def method() -> Iterator[Any]:
    """The class that SGLang finds after it has called its plugins, in a process that serves alone."""
    from sglang.srt.layers.quantization import get_quantization_config
    from sglang.srt.runtime_context import get_parallel

    sglang.load_plugins()
    alone = SimpleNamespace(world_size=1, rank_in_group=0)
    with get_parallel().override(tp_size=1, tp_rank=0, tp_group=alone, attn_tp_size=1, attn_tp_rank=0):
        yield get_quantization_config(QUANT_METHOD)


def test_its_plugin_loader_finds_the_entry_point(method: Any) -> None:
    from sglang.srt.configs.model_config import QUANTIZATION_METHODS
    from sglang.srt.server_args import QUANTIZATION_CHOICES

    assert method.__module__ == "transformers_qaig.integrations.sglang.config"
    assert QUANTIZATION_METHODS[QUANT_METHOD] is method
    assert QUANT_METHOD in QUANTIZATION_CHOICES


def test_its_linears_compute_what_packed_layers_do(method: Any) -> None:
    from sglang.srt.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from sglang.srt.model_loader.auto_loader import STANDARD_GATE_UP_MAPPING, STANDARD_QKV_MAPPING

    sizes = {"q": 4 * HEAD, "k": 2 * HEAD, "v": 2 * HEAD, "gate": ROWS, "up": ROWS, "o": K}
    packed = {name: linear(bits, sizes[name]) for name, bits in zip(sizes, (2, 3, 3, 8, 4, 4))}
    served = method.from_config(config({f"{name}_proj": layer for name, layer in packed.items()}))
    options = {"bias": False, "quant_config": served, "params_dtype": torch.float32}
    model = nn.ModuleDict({
        "qkv_proj": QKVParallelLinear(K, HEAD, 4, 2, prefix="qkv_proj", **options),
        "gate_up_proj": MergedColumnParallelLinear(K, [ROWS, ROWS], prefix="gate_up_proj", **options),
        "o_proj": RowParallelLinear(K, K, prefix="o_proj", **options),
    })  # fmt: skip
    parameters = dict(model.named_parameters())
    for name, layer in packed.items():
        for key, tensor in layer.state_dict().items():
            path = f"{name}_proj.{key}"
            fused = [
                each.try_load(path, tensor, parameters) for each in (STANDARD_QKV_MAPPING, STANDARD_GATE_UP_MAPPING)
            ]
            if not any(fused):
                parameters[path].weight_loader(parameters[path], tensor)
    for layer in model.values():
        layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(3, K)
    for fused_name, names in (("qkv_proj", "qkv"), ("gate_up_proj", ("gate", "up")), ("o_proj", "o")):
        expected = torch.cat([packed[name](x) for name in names], -1)
        torch.testing.assert_close(model[fused_name](x)[0], expected, rtol=1e-5, atol=1e-4)


def test_its_embeddings_are_rows_and_the_head(method: Any) -> None:
    from sglang.srt.layers.logits_processor import should_apply_lm_head_quant_method
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    packed, x, ids = linear(4, 40), torch.randn(3, K), torch.tensor([39, 0, 7])
    for kind, name in ((VocabParallelEmbedding, "model.embed_tokens"), (ParallelLMHead, "lm_head")):
        served = method.from_config(config({name: packed}))
        layer = kind(40, K, quant_config=served, prefix=name, params_dtype=torch.float32)
        load(layer, packed)
        layer.quant_method.process_weights_after_loading(layer)
        assert should_apply_lm_head_quant_method(layer, layer.quant_method)
        if kind is VocabParallelEmbedding:
            torch.testing.assert_close(layer(ids), packed.dequantize()[ids])
        torch.testing.assert_close(layer.quant_method.apply(layer, x, None), packed(x), rtol=1e-5, atol=1e-4)


def test_it_chooses_the_method_from_a_saved_config(method: Any) -> None:
    from sglang.srt.configs.model_config import ModelConfig

    chosen = ModelConfig.__new__(ModelConfig)
    chosen.quantization, chosen.is_draft_model, chosen.is_draft_quantization_explicit = None, False, False
    chosen._parse_quant_hf_config = lambda: config({"lm_head": linear(4, 40)})
    chosen._find_quant_modelslim_config = lambda: None
    chosen._verify_quantization()
    assert chosen.quantization == QUANT_METHOD
