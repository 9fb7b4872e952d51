"""What calibrating a block asks of a GPU, counted without one."""

from __future__ import annotations

from . import markdown, rows_of, table


@table("calibration-counts")
def calibration_counts() -> str:
    """One row a recipe; a budget's is what its costs take beside the recipe."""
    names = {"budget": "costs of widths, `fisher`"}
    rows = []
    for row in rows_of("calibration_counts"):
        flop = [f"{row[kind] / 1e12:,.0f}" for kind in ("flop_16", "flop_32", "flop_factor")]
        copied = [f"{row[way] / 1e9:.1f}" for way in ("to_device", "to_host")]
        name = names.get(row["task"], f"`{row['task']}`")
        rows.append([name, f"{row['launches']:,}", f"{row['syncs']:,}", *copied, *flop])
    head = ["of one block", "launches", "waits", "GB to the GPU", "GB back", "TFLOP, bfloat16", "float32", "factors"]
    return markdown(head, rows)
