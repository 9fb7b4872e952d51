"""Embeddings round row by row, and what a budget measures of them is what packing makes of them."""

import pytest
import torch
from torch import nn

from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.rounding import packed_layers
from transformers_qaig.rounding.packed_layers import embedding_errors, pack_embedding


@pytest.mark.parametrize("recipe", ["rtn", "default"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_errors_are_those_of_the_packed_rows(
    recipe: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_layers, "ROWS_PER_CHUNK", 32)
    embeddings, scheme = nn.Embedding(80, 64, dtype=dtype), WeightScheme(3, 32)
    errors = embedding_errors(embeddings, scheme, RECIPES[recipe])
    packed = pack_embedding(embeddings, scheme, RECIPES[recipe])
    assert (errors.dtype, errors.shape) == (dtype, (80, 64))
    found = embeddings.weight.detach().float() + errors.float()
    rows = packed(torch.arange(80)).float()
    torch.testing.assert_close(rows, found, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert errors.abs().max() > 0.1


def test_clipping_lowers_the_errors() -> None:
    torch.manual_seed(0)
    embeddings, scheme = nn.Embedding(64, 64), WeightScheme(2, 64)
    plain, clipped = (embedding_errors(embeddings, scheme, RECIPES[name]) for name in ("rtn", "default"))
    assert float(clipped.square().sum()) < 0.9 * float(plain.square().sum())
