"""What saved files take, part by part, and what a budget for the whole file costs the answers."""

from __future__ import annotations

from . import Row, markdown, rows_of, table
from .figures import interval

PARTS = {"vision_bits": "tower", "lm_head_bits": "head", "embedding_bits": "embeddings"}


def packed_parts(row: Row) -> str:
    """`bits=3`, `bits=3, tower at 4`, `bits=3, the rest at 4` or `budget="4x"`."""
    if row.get("budget"):
        return f'`budget="{row["budget"]}"`'
    packed = [(name, row[key]) for key, name in PARTS.items() if row.get(key)]
    names = "".join(f", {name} at {bits}" for name, bits in packed)
    return f"`bits={row['bits']}`" + (f", the rest at {packed[0][1]}" if len(packed) == len(PARTS) else names)


@table("whole-file-tiny")
def whole_file_tiny() -> str:
    """Settings chosen by hand, on the first calibration set."""
    rows = []
    for row in rows_of("whole_file"):
        if row["model"] != "tiny" or row["calibration"] or row.get("budget"):
            continue
        error = f"{1e3 * row['kl']:.3f}\u00a0±\u00a0{1e3 * row['kl_se']:.3f}"
        rows.append([packed_parts(row), f"{row['times_smaller']:.2f}", error, f"{row['exact_match']:.3f}"])
    return markdown(["tiny VLM, group size 64", "times smaller than bfloat16", "KL, 1e-3", "exact match"], rows)


@table("whole-file-budgets")
def whole_file_budgets() -> str:
    """Each budget for the whole file against the best setting chosen by hand that meets it."""
    rows = []
    for row in (row for row in rows_of("whole_file") if row.get("budget")):
        hand, ratio = "none is as small", "–"
        if "kl_ratio" in row:
            hand, ratio = packed_parts(row["best_by_hand"]), interval(row["kl_ratio"])
        rows.append([packed_parts(row), f"{row['times_smaller']:.2f}", f"{1e3 * row['kl']:.3f}", hand, ratio])
    head = ["tiny VLM, group size 64", "times smaller than bfloat16", "KL, 1e-3", "best by hand", "KL / that KL"]
    return markdown(head, rows)


@table("whole-file-7b")
def whole_file_7b() -> str:
    rows = [
        [packed_parts(row), f"{row['bytes'] / 1e6:,.0f}", f"{row['times_smaller']:.2f}"]
        for row in rows_of("whole_file")
        if row["model"] == "7b" and sum(key in row for key in PARTS) in (0, len(PARTS))
    ]
    return markdown(["Qwen2.5-VL-7B's shapes, group size 128", "file, MB", "times smaller than bfloat16"], rows)
