"""The operator under `torch.compile` and `torch.export`: whole graphs, for every batch size and every next token."""

from itertools import cycle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from tests import seeds
from tests.tolerance import assert_close, terms_of
from transformers_qaig.nn import QAIGLinear

STEPS = 20


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def random_layer(in_features: int, out_features: int, bias: bool = False, bits: int = 3) -> QAIGLinear:
    groups = in_features // 32
    return QAIGLinear.from_codes(
        torch.randint(0, 2**bits, (out_features, in_features), dtype=torch.uint8),
        torch.rand(out_features, groups) * 0.02 + 0.01,
        torch.randint(0, 2**bits, (out_features, groups), dtype=torch.uint8),
        torch.randn(out_features) if bias else None,
        bits=bits,
        group_size=32,
    )


def packed_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    linears = [(name, module) for name, module in model.model.named_modules() if isinstance(module, nn.Linear)]
    for (name, module), bits in zip(linears, cycle((3, 2, 4, 8, 5))):
        model.model.set_submodule(name, random_layer(module.in_features, module.out_features, bits=bits))
    return model


def test_one_graph_for_every_batch_size():
    layer = random_layer(64, 24, bias=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for rows in (3, 5, 17, 2):
        x = torch.randn(rows, 7, 64)
        torch._dynamo.mark_dynamic(x, 0)
        assert_close(compiled(x), layer(x), 64)
    assert counter.frame_count == 1


def test_training_step_compiles_whole():
    layer = random_layer(64, 24, bias=True).requires_grad_(True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (layer, compiled):
        x = torch.randn(4, 64, generator=seeds.generator()).requires_grad_()
        layer.bias.grad = None
        function(x).square().sum().backward()
        gradients.append((x.grad, layer.bias.grad))
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        assert_close(ours, expected, 64 + 24)


def test_autocast_compiles_whole():
    layer, x = random_layer(64, 24, bias=True), torch.randn(4, 64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, out = layer(x), compiled(x)
    assert out.dtype == torch.bfloat16
    assert_close(out, expected, 64)


@torch.no_grad()
def decode(model: LlamaForCausalLM, step, cache: StaticCache) -> torch.Tensor:
    """Logits `[STEPS, vocab]` of fixed tokens: 5 are prefilled eagerly, then each goes alone through `step`."""
    tokens = torch.randint(0, 64, (1, 5 + STEPS), generator=seeds.generator())
    model(tokens[:, :5], past_key_values=cache)
    out = []
    for position in range(5, 5 + STEPS):
        position_ids = torch.tensor([[position]])
        out.append(step(tokens[:, position : position + 1], position_ids=position_ids, past_key_values=cache).logits)
    return torch.cat(out, dim=1)[0]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_decoder_compiles_whole_and_never_again(backend):
    model = packed_llama()
    expected = decode(model, model, StaticCache(model.config, max_cache_len=32))
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    out = decode(model, compiled, StaticCache(model.config, max_cache_len=32))
    assert counter.frame_count == 1
    assert_close(out, expected, terms_of(model))


@torch.no_grad()
def test_decoder_exports_for_any_length(tmp_path):
    model = packed_llama()
    length = torch.export.Dim("length", min=2, max=64)
    tokens = torch.randint(0, 64, (1, 9))
    program = torch.export.export(
        model, (tokens,), {"use_cache": False}, dynamic_shapes={"input_ids": {1: length}, "use_cache": None}
    )
    torch.export.save(program, tmp_path / "decoder.pt2")
    again = torch.export.load(tmp_path / "decoder.pt2").module()
    for size in (3, 17):
        tokens = torch.randint(0, 64, (1, size))
        expected = model(tokens, use_cache=False).logits
        assert_close(again(tokens, use_cache=False).logits, expected, terms_of(model))
