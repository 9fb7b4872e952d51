"""Packed experts under `torch.compile`: whole graphs for every number of tokens, with gradients, in a whole model."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import StaticCache

from tests.experts import build
from tests.nn.test_experts import experts, packed_linears
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig.nn.experts_layout import find_experts


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def packed(name: str) -> QAIGExperts:
    module = QAIGExperts.from_linears(packed_linears(experts(name)))
    module.to_kernel_layout()
    return module


def inputs_of(module: QAIGExperts, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    layout = module.stack
    weights, index = torch.rand(tokens, layout.num_experts).topk(2)
    return torch.randn(tokens, layout.hidden_size), index, weights


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "nemotron_h"])
def test_a_graph_serves_every_number_of_tokens(name: str) -> None:
    module, counter = packed(name), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for tokens in (3, 5, 17, 6, 9):
        inputs = inputs_of(module, tokens)
        torch.testing.assert_close(compiled(*inputs), module(*inputs))
    assert counter.frame_count <= 2  # of five; gpt_oss may be traced again after its first call


def test_gradients_of_the_compiled_experts_are_those_of_the_others() -> None:
    module, grads = packed("mixtral"), []
    hidden, index, weights = inputs_of(module, 7)
    for function in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weights)]
        function(leaves[0], index, leaves[1]).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_negative_index_is_an_error_there_too() -> None:
    module = packed("mixtral")
    hidden, index, weights = inputs_of(module, 4)
    index[1, 0] = -1
    with pytest.raises(RuntimeError, match="an index of an expert is out of range"):
        torch.compile(module, fullgraph=True, backend="aot_eager")(hidden, index, weights)


def packed_mixtral() -> nn.Module:
    model = build("mixtral")
    for path in find_experts(model):
        stack = QAIGExperts.from_linears(packed_linears(model.get_submodule(path)))
        stack.to_kernel_layout()
        model.set_submodule(path, stack)
    return model


@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_decoder_with_packed_experts_compiles_whole_and_never_again(backend: str) -> None:
    model, counter = packed_mixtral(), CompileCounterWithBackend(backend)
    tokens = torch.randint(3, 100, (1, 9))
    expected, compiled = model(tokens, use_cache=False).logits, torch.compile(model, fullgraph=True, backend=counter)
    cache = StaticCache(model.config, max_cache_len=16)
    model(tokens[:, :4], past_key_values=cache)
    for position in range(4, 9):
        where = torch.tensor([[position]])
        logits = compiled(tokens[:, position : position + 1], position_ids=where, past_key_values=cache).logits
        torch.testing.assert_close(logits[:, 0], expected[:, position], rtol=1e-3, atol=1e-3)
    assert counter.frame_count == 1
