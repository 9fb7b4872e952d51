"""Markdown of `cpu_gemm.py`'s rows: every cell's times, and ours against the goals."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Row = dict[str, Any]

# (bits, activations) -> M -> goals, each (what is compared, at least this)
READ, PEER, DENSE, ISA = "read_fraction", "ratio_to_best_peer", "ratio_to_bf16", "ratio_to_best_isa"
GOALS: dict[tuple[int, str], dict[int, list[tuple[str, float]]]] = {
    (3, "a16"): {1: [(READ, 0.85)], 4: [(PEER, 1.2)], 16: [(PEER, 1.2)], 128: [(PEER, 1.0)], 1024: [(DENSE, 0.95)]},
    (3, "a8"): {1: [(PEER, 1.2)], 4: [(PEER, 1.6)], 16: [(PEER, 1.6)], 128: [(PEER, 1.5)], 1024: [(PEER, 1.4)]},
    (8, "a16"): {1: [(PEER, 1.0)], 4: [(PEER, 1.1)], 16: [(PEER, 1.1)], 128: [(PEER, 1.0)], 1024: [(DENSE, 0.95)]},
    (8, "a8"): {1: [(PEER, 1.0)], 4: [(PEER, 1.1)], 16: [(PEER, 1.1)], 128: [(PEER, 1.1)], 1024: [(PEER, 1.2)]},
}
for _bits in (2, 4):
    GOALS[_bits, "a16"] = {
        1: [(READ, 0.85), (PEER, 1.0)], 4: [(PEER, 1.2)], 16: [(PEER, 1.2)], 128: [(PEER, 1.0)], 1024: [(DENSE, 0.95)],
    }  # fmt: skip
    GOALS[_bits, "a8"] = {
        1: [(PEER, 1.0)],
        4: [(PEER, 1.2)],
        16: [(PEER, 1.2)],
        128: [(PEER, 1.2)],
        1024: [(PEER, 1.3)],
    }
ISA_GOALS = {("avx2", 1): 0.7, ("avx2", 128): 0.4}
WORDS = {READ: "of read bandwidth", PEER: "× best peer", DENSE: "× bf16"}


def markdown(rows: list[Row]) -> str:
    """The goals first, then one table of times for each shape, thread count and width."""
    tables = defaultdict(list)
    for row in rows:
        if "m" in row:
            tables[row["k"], row["n"], row["threads"], row["bits"]].append(row)
    parts = [_goals(rows)]
    for (k, n, threads, bits), cells in tables.items():
        parts.append(f"### K={k}, N={n}, {threads} threads, {bits} bits\n\n{_times(cells)}")
    return "\n\n".join(parts)


def _goals(rows: list[Row]) -> str:
    lines = ["| bits | K×N | threads | M | measured | goal | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        for what, measured, goal in _judged(row):
            verdict = "met" if measured >= goal else f"short by {1 - measured / goal:.0%}"
            lines.append(
                f"| {row['bits']} {row['activations'].upper()} | {row['k']}×{row['n']} | {row['threads']} | {row['m']} "
                f"| {measured:.2f} {what} | ≥ {goal} | {verdict} |"
            )
    return "\n".join(lines)


def _judged(row: Row) -> list[tuple[str, float, float]]:
    """(what is compared, measured, goal) of a row."""
    if row.get("op") is None or not row["op"].startswith("qaig"):
        return []
    if row["op"] == "qaig":
        goals = GOALS.get((row["bits"], row["activations"]), {}).get(row["m"], [])
        return [
            (WORDS[key] + (f" ({row['best_peer']})" if key == PEER else ""), row[key], goal)
            for key, goal in goals
            if row.get(key) is not None
        ]
    isa = row["op"].removeprefix("qaig ")
    goal = ISA_GOALS.get((isa, row["m"]))
    return [(f"{isa} × best ISA", row[ISA], goal)] if goal and ISA in row else []


def _times(rows: list[Row]) -> str:
    """Microseconds, with GB/s of weights at M=1 and GFLOP/s above; limits in their own units."""
    tokens = sorted({row["m"] for row in rows})
    by_op: dict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    reasons = dict.fromkeys(row["reason"] for row in rows if row["op"] is None)
    for row in rows:
        if row["op"] is not None:
            by_op[row["op"], row["activations"]][row["m"]] = row
    lines = [
        "| | activations | " + " | ".join(f"M={m}" for m in tokens) + " |",
        "|---|---|" + "---|" * len(tokens),
    ]
    for (op, activations), cells in by_op.items():
        figures = " | ".join(_figure(cells[m]) if m in cells else "–" for m in tokens)
        lines.append(f"| {op} | {activations} | {figures} |")
    lines += [f"\nNot measured: {reason}" for reason in reasons]
    return "\n".join(lines)


def _figure(row: Row) -> str:
    if row["activations"] == "limit":
        return f"{row['gb_per_s']:.1f} GB/s" if row["weight_bytes"] else f"{row['gflop_per_s']:.0f} GFLOP/s"
    if row["m"] == 1:
        return f"{row['us']:.0f} µs ({row['gb_per_s']:.1f} GB/s)"
    return f"{row['us']:.0f} µs ({row['gflop_per_s']:.0f})"
