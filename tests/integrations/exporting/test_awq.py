"""AWQ's words: eight output channels in one, in its order."""

import torch

from tests import seeds
from transformers_qaig.integrations.exporting.awq import packed_gemm


def test_a_word_holds_even_channels_before_odd_ones() -> None:
    codes = torch.arange(8, dtype=torch.uint8)[None]
    (word,) = packed_gemm(codes).flatten().tolist()
    assert [word >> (4 * place) & 15 for place in range(8)] == [0, 2, 4, 6, 1, 3, 5, 7]


def test_every_code_comes_back() -> None:
    codes = torch.randint(16, (5, 24), dtype=torch.uint8, generator=seeds.generator())
    words = packed_gemm(codes)
    assert words.shape == (5, 3)
    assert words.dtype == torch.int32
    fields = torch.stack([words >> (4 * place) & 15 for place in range(8)], -1)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    back = torch.empty_like(fields)
    back[..., order] = fields
    assert torch.equal(back.flatten(1), codes.int())
