"""Shows calibration samples: their lengths, their words and pictures, and how much each token counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from .markup import escaped

BINS = 24


def lengths(tokens: Sequence[int]) -> str:
    """Returns a histogram of how long samples are."""
    if not tokens:
        return ""
    low, high = min(tokens), max(tokens)
    counts = [0] * (BINS if high > low else 1)
    width = (high - low) / len(counts) or 1.0
    for length in tokens:
        counts[min(int((length - low) / width), len(counts) - 1)] += 1
    bars = "".join(
        f'<i style="height:{100 * count / max(counts):.0f}%" '
        f'title="{count} samples of {low + index * width:.0f} to {low + (index + 1) * width:.0f} tokens"></i>'
        for index, count in enumerate(counts)
    )
    return f'<h3>lengths: {low} to {high} tokens</h3><div class="bars">{bars}</div>'


def samples(record: Mapping[str, Any]) -> str:
    """Returns the samples that the record shows, and a choice of blocks if tokens were weighted."""
    if not record["views"]:
        return ""
    blocks = list(record["token_weights"])
    choice = ""
    if blocks:
        options = "".join(f'<option value="{escaped(path)}">{escaped(path)}</option>' for path in blocks)
        choice = (
            '<p class="legend">Token weights λ in <select id="block" aria-label="block">'
            f"{options}</select> over pictures, and as bars below words. A bar is as high as λ. "
            "Samples that are held back for validation have none.</p>"
        )
    shown = "".join(_sample(index, view) for index, view in enumerate(record["views"]))
    return f'<h3>the first {len(record["views"])}</h3>{choice}<div class="samples">{shown}</div>'


def _sample(index: int, view: Mapping[str, Any]) -> str:
    # Only the picture whose tokens fill one grid can have weights over it.
    canvas = "<canvas></canvas>" if view["grid"] and len(view["pictures"]) == 1 else ""
    pictures = "".join(
        f'<span class="picture"><img alt="picture of sample {view["index"]}" '
        f'src="data:image/jpeg;base64,{escaped(data)}">{canvas}</span>'
        for data in view["pictures"]
    )
    return (
        f'<figure data-view="{index}">{pictures}'
        f"<figcaption>record {view['index']}, {view['tokens']} tokens</figcaption>"
        f'<div class="words">{"".join(_words(view))}</div></figure>'
    )


def _words(view: Mapping[str, Any]) -> Iterator[str]:
    pictures = set(view["picture_tokens"])
    numbered = enumerate(view["words"])
    for is_picture, run in groupby(numbered, key=lambda pair: pair[0] in pictures):
        if is_picture:
            yield f'<span class="run">⟨picture × {len(list(run))}⟩</span>'
            continue
        for position, word in run:
            yield f'<span data-token="{position}">{escaped(word) or " "}</span>'
