"""The head's bias, which vLLM passes at each call. Nothing of vLLM but its names is needed."""

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.engines.test_shards import K, linear

LAYERS = "transformers_qaig.integrations.vllm.layers"
NAMES = {
    "linear": ("LinearMethodBase",),
    "vocab_parallel_embedding": ("UnquantizedEmbeddingMethod", "ParallelLMHead"),
}


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, classes in NAMES.items():
        module = ModuleType(name)
        for each in classes:
            setattr(module, each, type(each, (nn.Module,) if each == "ParallelLMHead" else (), {}))
        monkeypatch.setitem(sys.modules, f"vllm.model_executor.layers.{name}", module)
    yield import_module(LAYERS)
    del sys.modules[LAYERS]


@pytest.mark.parametrize("padded", [40, 64])
def test_the_bias_of_a_head_counts_once_and_may_be_padded(layers: Any, padded: int) -> None:
    packed, x = linear(4, 40), torch.randn(3, K)
    method = layers.QAIGEmbeddingMethod("lm_head", [packed.scheme])
    head = sys.modules["vllm.model_executor.layers.vocab_parallel_embedding"].ParallelLMHead()
    head.org_vocab_size, head.bias = 40, nn.Parameter(torch.randn(padded), requires_grad=False)
    method.create_weights(head, K, [padded], K, padded, torch.float32)
    for name, tensor in packed.state_dict().items():
        parameter = head.get_parameter(name)
        parameter.weight_loader(parameter, tensor)
    method.process_weights_after_loading(head)
    torch.testing.assert_close(method.apply(head, x, head.bias), packed(x) + head.bias[:40])


@pytest.mark.parametrize("bias", [None, nn.Parameter(torch.ones(40), requires_grad=False)])
def test_embeddings_that_are_the_head_have_its_bias(layers: Any, bias: nn.Parameter | None) -> None:
    """vLLM's models of Transformers' classes read it, even where there is none."""
    method = layers.QAIGEmbeddingMethod("embed_tokens", [linear(4, 40).scheme])
    head, embeddings = nn.Module(), nn.Module()
    head.bias, embeddings.quant_method = bias, method
    assert layers.tied_head(head, embeddings) is embeddings
    assert method.is_tied
    assert embeddings.bias is bias
