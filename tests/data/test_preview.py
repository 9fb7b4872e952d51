"""A sample as text: padding left out, long runs of one token collapsed, and never an error."""

from typing import Any

import torch

from transformers_qaig.data.preview import MAX_CHARS, preview


class Letters:
    """Decodes 1, 2, 3 as a, b, c."""

    def decode(self, ids: list[int]) -> str:
        return "".join(" abc"[token] for token in ids)


def shown(ids: list[int], padding: int = 0, tokenizer: Any = None) -> str:
    mask = torch.tensor([[0] * padding + [1] * len(ids)])
    row = torch.tensor([[3] * padding + ids])
    return preview(tokenizer or Letters(), {"input_ids": row, "attention_mask": mask})


def test_long_runs_are_counted_and_short_ones_are_text() -> None:
    assert shown([1, 2, 2, 2, 2, 1, 1, 1], padding=2) == "ab×4aaa"


def test_ids_without_a_tokenizer_are_shown_as_they_are() -> None:
    assert shown([1, 2, 77]) == "[1, 2, 77]"
    assert shown([1, 2], tokenizer=object()) == "[1, 2]"


def test_a_long_text_loses_its_middle() -> None:
    text = shown([1, 2] * MAX_CHARS)
    assert len(text) < MAX_CHARS + 10
    assert " […] " in text
