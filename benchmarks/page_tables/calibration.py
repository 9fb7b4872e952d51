"""What calibrating asks of a GPU, counted without one, and how long it takes on a CPU."""

from __future__ import annotations

from statistics import median
from typing import Any

from . import markdown, rows_of, table

RATES = {"flop_16": 650e12, "flop_32": 50e12, "flop_factor": 12e12, "to_device": 5e9, "to_host": 5e9}
"""What an H200 does in a second, as far as it is known: products, factorizations, copies of pageable memory."""
LAUNCH = 6e-6
"""Seconds that the host takes for a launch."""
PEER = "llm-compressor-gptq-asym"


def estimated_seconds(row: dict[str, Any]) -> float:
    """Returns what the counts take if nothing happens at the same time."""
    return row["launches"] * LAUNCH + sum(row[kind] / rate for kind, rate in RATES.items())


@table("calibration-counts")
def calibration_counts() -> str:
    """One row a recipe; a budget's is what its costs take beside the recipe."""
    names = {"budget": "costs of widths, `fisher`"}
    rows, order = [], ("rtn", "gptq", "default", "best", "budget")
    for row in sorted(rows_of("calibration_counts"), key=lambda row: order.index(row["task"])):
        flop = [f"{row[kind] / 1e12:,.0f}" for kind in ("flop_16", "flop_32", "flop_factor")]
        copied = [f"{row[way] / 1e9:.1f}" for way in ("to_device", "to_host")]
        name = names.get(row["task"], f"`{row['task']}`")
        counts = [f"{row['launches']:,}", f"{row['syncs']:,}", *copied, *flop]
        rows.append([name, *counts, f"{estimated_seconds(row):.1f}"])
    head = ["of one block", "launches", "waits", "GB to the GPU", "GB back", "TFLOP, bfloat16", "float32", "factors"]
    head.append("seconds, estimated")
    return markdown(head, rows)


@table("calibration-time")
def calibration_time() -> str:
    """One row a model, one column a method: median processor seconds, and their ratio to the peer's."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows_of("calibration_time"):
        found.setdefault((row["model"], row["method"]), []).append(row["cpu_seconds"])
    names = {"tiny-vlm": "tiny VLM", "half-billion": "two blocks of a 0.5B's widths"}
    rows = []
    for model, name in names.items():
        medians = {method: median(found[model, method]) for method in ("gptq", "default", PEER)}
        ratios = (f"{seconds:.0f} ({seconds / medians[PEER]:.1f} ×)" for seconds in medians.values())
        rows.append([name, *ratios])
    return markdown(["processor seconds", "`gptq`", "`default`", "llm-compressor's GPTQ"], rows)
