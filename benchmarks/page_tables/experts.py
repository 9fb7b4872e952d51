"""What quantization costs the answers of the tiny VLM with experts."""

from __future__ import annotations

import numpy as np

from . import markdown, rows_of, table
from .answers import by_width

EXPERTS = "accuracy_experts"
WIDTHS = {"W2": (2, 16, 64), "W3": (3, 16, 64), "W4": (4, 16, 64)}
ROUTING = {
    "linear": "as much as its routing weight: what the package does",
    "square": "as much as the square of it",
    "unweighted": "the same",
    "all": "the same, for every expert, routed to it or not",
}


@table("accuracy-experts")
def accuracy_experts() -> str:
    return by_width(EXPERTS, WIDTHS)


@table("routing-weights")
def routing_weights() -> str:
    """Output error of the stacks over that with routing weights: geometric mean over the blocks, by calibration set."""
    known = {
        (row["scenes"], row["weights"], row["calibration"]): np.log(row["output_error"])
        for row in rows_of("routed_moments")
    }
    scenes = sorted({scenes for scenes, _, _ in known})
    sets = sorted({first for _, _, first in known})
    rows = []
    for name, words in ROUTING.items():
        logs = [[known[count, name, first] - known[count, "linear", first] for first in sets] for count in scenes]
        rows.append([words, *(", ".join(f"{np.exp(each.mean()):.3f}" for each in one) for one in logs)])
    return markdown(["a token counts", *(f"{count} scenes" for count in scenes)], rows)
