"""Modules in several places are replaced in all of them; packed embeddings refuse to be resized."""

import pytest
import torch
from torch import nn

from tests.families import build
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.loading.tied_embeddings import (
    install_tied_embeddings,
    replace_everywhere,
    uninstall_tied_embeddings,
)
from transformers_qaig.nn.embedding import QAIGEmbedding
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.structure import find_input_embeddings, find_lm_head

SCHEME = WeightScheme(4, 32)


def test_every_place_gets_the_new_module_and_others_stay() -> None:
    one, other, new = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.ModuleDict({"a": one, "b": nn.ModuleList([one, other])})
    replace_everywhere(model, one, new)
    assert model["a"] is model["b"][0] is new
    assert model["b"][1] is other


def test_tied_embeddings_and_head_share_their_packed_tensors() -> None:
    model, _ = build("gemma3")
    embeddings, head = find_input_embeddings(model), find_lm_head(model)
    replace_everywhere(model, embeddings.module, QAIGEmbedding.like(embeddings.module, SCHEME))
    install_tied_embeddings(model, {embeddings.path: SCHEME, head.path: SCHEME})
    packed, packed_head = find_input_embeddings(model).module, find_lm_head(model).module
    assert isinstance(packed_head, QAIGLinear)
    assert packed_head.weight_packed is packed.weight_packed
    assert any("weight_packed" in name for name in model.all_tied_weights_keys)
    with pytest.raises(NotImplementedError, match=r"resize_token_embeddings\(7\).*dequantize"):
        model.resize_token_embeddings(7)
    assert model.resize_token_embeddings() is packed

    dense = nn.Embedding(*packed.weight_shape.tolist(), dtype=torch.float32)
    replace_everywhere(model, packed, dense)
    model.set_submodule(head.path, nn.Linear(dense.embedding_dim, dense.num_embeddings, bias=False))
    uninstall_tied_embeddings(model)
    assert find_lm_head(model).module.weight is dense.weight
