"""What quantization costs the answers of the tiny VLM with experts, and what packed experts take on a CPU."""

from __future__ import annotations

import numpy as np
from accuracy_ledger import QUESTIONS

from . import RESULTS, Row, markdown, rows_of, table
from .answers import ATTRIBUTED, by_width
from .figures import ratio

EXPERTS = "accuracy_experts"
MORE_QUESTIONS = "accuracy_experts_w2"
"""Rows at 2 bits on twice as many pictures."""
WIDTHS = {"W2": (2, 16, 64), "W3": (3, 16, 64), "W4": (4, 16, 64)}
ROUTING = {
    "linear": "as much as its routing weight: what the package does",
    "square": "as much as the square of it",
    "unweighted": "the same",
    "all": "the same, for every expert, routed to it or not",
}
STACKS = {(2048, 768): "2048 × 768", (4096, 1408): "4096 × 1408"}
"""Hidden and intermediate channels of the stacks that `experts.py` measures."""


@table("accuracy-experts")
def accuracy_experts() -> str:
    return by_width(EXPERTS, WIDTHS)


@table("experts-peers")
def experts_peers() -> str:
    """What `default` loses over what others lose at its size: with one width at 2 bits, else with chosen widths."""
    peers = {"rtn": "`rtn`", "gptq": "`gptq`", "llm-compressor-gptq-asym": "llm-compressor-gptq-asym"}
    rows = []
    for width, ledger, method, words in (
        ("W2", MORE_QUESTIONS, "default", "one"),
        ("W3", EXPERTS, ATTRIBUTED, "2, 3, 4 or 8 bits"),
        ("W4", EXPERTS, ATTRIBUTED, "3, 4 or 8 bits"),
    ):
        with np.load(RESULTS / f"{ledger}.npz", allow_pickle=False) as file:
            questions = len(file[QUESTIONS[0]])
        found = [ratio(ledger, WIDTHS[width], method, peer) for peer in peers]
        rows.append([width, words, f"{questions:,}", *(whole for whole, _ in found), found[-1][1]])
    head = ["size of", "widths", "questions", *(f"`default` / {name}" for name in peers.values())]
    return markdown([*head, "the last by calibration set"], rows)


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


def _stacks(op: str, tokens: int) -> list[Row]:
    """Returns the rows of a candidate, one for each size."""
    known = {
        (row["hidden"], row["intermediate"]): row
        for row in rows_of("experts")
        if (row["experts"], row["bits"], row["cpu_isa"], row["op"], row["tokens"]) == (128, 4, "avx512", op, tokens)
    }
    return [known[size] for size in STACKS]


@table("cpu-experts")
def cpu_experts() -> str:
    """How many times as fast as others a whole stack is, by the number of tokens."""
    rows = []
    for tokens in (1, 4, 16, 128, 1024):
        found = _stacks("qaig", tokens)
        cells = [f"{row[f'times {other}']:.1f}" for row in found for other in ("bf16", "qaig loop")]
        rows.append([f"{tokens:,}", *cells])
    heads = [f"{size}: × {other}" for size in STACKS.values() for other in ("bfloat16", "a loop")]
    return markdown(["tokens", *heads], rows)


@table("cpu-experts-one-token")
def cpu_experts_one_token() -> str:
    """The speed of one token through a stack over that of linears with the bytes of its experts."""
    rows = [
        [words, *(f"{row['times one linear']:.2f}" for row in _stacks(op, 1))]
        for op, words in (
            ("qaig product", "the stack's products"),
            ("qaig", "the whole stack: routing, gate and sum too"),
        )
    ]
    return markdown(["", *STACKS.values()], rows)
