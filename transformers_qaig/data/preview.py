"""Shows a sample as text, as the model reads it."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch

from .tensors import text_name, token_mask

MAX_CHARS = 2000
COLLAPSE_FROM = 4  # shorter runs of one token are ordinary text ("...", a table's rule)


def preview(processor: Any, sample: Mapping[str, torch.Tensor]) -> str:
    """Returns the first row of a sample as text, without padding.

    Runs of one token are collapsed (`<image>×64`). Without a decoder the text is the ids.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    name = "input_ids" if "input_ids" in sample else text_name(sample)
    ids = sample[name][0][token_mask(sample, name)[0]].tolist()
    try:
        text = _decoded(tokenizer, ids)
    except Exception:  # no tokenizer, or ids of another one: a log line must not fail the run
        text = str(ids)
    half = MAX_CHARS // 2
    return text if len(text) <= MAX_CHARS else f"{text[:half]} […] {text[-half:]}"


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    pieces: list[str] = []
    plain: list[int] = []
    for token, run in itertools.groupby(ids):
        count = len(list(run))
        if count < COLLAPSE_FROM:
            plain += [token] * count
            continue
        pieces += [tokenizer.decode(plain), f"{tokenizer.decode([token])}×{count}"]
        plain = []
    return "".join([*pieces, tokenizer.decode(plain)])
