"""Formats what one bit less costs: as a table in plain text, and as a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..plan.width_costs import OneBitLess, by_part, loss_per_megabyte
from .page.strips import short_name


def part_table(layers: Sequence[OneBitLess], bits: int) -> str:
    """Formats the parts as plain text."""
    lines = [f"one bit less than {bits}:"]
    for part, loss, saved in by_part(layers):
        lines.append(
            f"  {part:28} loss {loss:10.3e}  saves {saved / 1e6:10.3f} MB  {loss_per_megabyte(loss, saved):10.3e} a MB"
        )
    return "\n".join(lines)


def draw_marginal(figure: Any, layers: Sequence[OneBitLess], bits: int) -> None:
    """Draws bars of the parts, and the loss of each layer of the largest list of blocks, into a matplotlib figure."""
    import numpy as np

    left, right = figure.subplots(1, 2, width_ratios=[1, 1.6])
    parts = by_part(layers)
    labels = [f"{part}\n{loss:.1e}, saves {saved / 1e6:.2g} MB" for part, loss, saved in parts]
    left.barh(labels, [max(loss, 0.0) for _, loss, _ in parts])
    left.set(xlabel="predicted loss", title=f"one bit less than {bits}", xticks=[])
    left.invert_yaxis()
    lists: dict[str, set[str]] = defaultdict(set)
    for layer in layers:
        lists[layer.block.rpartition(".")[0]].add(layer.block)
    where = max(lists, key=lambda name: len(lists[name]))
    shown = [layer for layer in layers if layer.block.rpartition(".")[0] == where]
    blocks, names = (list(dict.fromkeys(getattr(layer, key) for layer in shown)) for key in ("block", "name"))
    grid = np.full((len(names), len(blocks)), np.nan)
    for layer in shown:
        place = names.index(layer.name), blocks.index(layer.block)
        grid[place] = np.log10(layer.rate) if layer.rate > 0 else np.nan
    image = right.imshow(grid, cmap="Blues", aspect="auto", interpolation="nearest")
    right.set_yticks(range(len(names)), [short_name(name) for name in names], parse_math=False)
    right.set(xlabel="block")
    right.set_title(where, fontsize=9, parse_math=False)
    figure.colorbar(image, ax=right, label="log10 of loss a MB")
