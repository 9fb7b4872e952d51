"""Packed embeddings do what a model's embeddings are expected to do."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText

from tests.lifecycle import inputs, logits, packed
from tests.tolerance import assert_close, terms_of
from transformers_qaig import QAIGLinear
from transformers_qaig.nn import QAIGEmbedding


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_dequantized_it_is_an_ordinary_model_again(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, folder = request.getfixturevalue(which)
    source = request.getfixturevalue({"tied": "gemma3", "untied": "llava"}[which])
    dense = AutoModelForImageTextToText.from_pretrained(folder)
    dense.dequantize()
    assert not packed(dense)
    original = AutoModelForImageTextToText.from_pretrained(source)
    assert type(dense.get_input_embeddings()) is type(original.get_input_embeddings())
    assert (dense.lm_head.weight is dense.get_input_embeddings().weight) == (which == "tied")
    assert_close(logits(dense, source), logits(model, source), terms_of(dense))
    dense.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(logits(again, source), logits(dense, source))
    size = dense.get_input_embeddings().num_embeddings
    assert dense.resize_token_embeddings(size + 8).num_embeddings == size + 8
    assert dense.lm_head.out_features == size + 8


def test_embeddings_are_found_and_refuse_to_be_resized(
    tied: tuple[nn.Module, Path], untied: tuple[nn.Module, Path]
) -> None:
    for model, _ in (tied, untied):
        table = model.get_input_embeddings()
        assert isinstance(table, QAIGEmbedding)
        assert isinstance(model.get_output_embeddings(), QAIGLinear)
        assert model.resize_token_embeddings() is table
        assert model.resize_token_embeddings(table.num_embeddings) is table
        for owner in (model, model.model, model.model.language_model):
            with pytest.raises(NotImplementedError, match="dequantize"):
                owner.resize_token_embeddings(table.num_embeddings + 1)


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_copies_and_pickles_are_whole(which: str, request: pytest.FixtureRequest) -> None:
    model = AutoModelForImageTextToText.from_pretrained(request.getfixturevalue(which)[1])
    ids = torch.tensor([[3, 4, 5]])
    others = copy.deepcopy(model), pickle.loads(pickle.dumps(model))  # a forward leaves hooks that are not pickled
    for other in others:
        assert torch.equal(other(ids).logits, model(ids).logits)
        with pytest.raises(NotImplementedError, match="dequantize"):
            other.resize_token_embeddings(7)
        assert other.resize_token_embeddings() is other.get_input_embeddings()


def test_generates_as_its_dequantized_self(tied: tuple[nn.Module, Path], gemma3: Path) -> None:
    dense = AutoModelForImageTextToText.from_pretrained(tied[1])
    dense.dequantize()
    answers = [m.generate(**inputs(gemma3), max_new_tokens=5, do_sample=False) for m in (tied[0], dense)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_a_base_model_does_without_the_head(
    which: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = request.getfixturevalue(which)
    base = AutoModel.from_pretrained(folder)
    assert "UNEXPECTED" not in caplog.text
    assert len(packed(base)) == len(packed(model)) - 1
    assert torch.equal(base.get_input_embeddings().dequantize(), model.get_input_embeddings().dequantize())
