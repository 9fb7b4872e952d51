"""Draws a report as pictures for a README: bits, errors, and what a bit buys. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.files import written_whole
from .page.strips import lists_of, mean_width, short_name

BLUES = "Blues"
ERRORS = {"error": "output", "entering": "entering", "pictures": "at pictures", "text": "at text"}


def save_figures(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws what the record has into `bits.png`, `errors.png` and `front.png`; returns those that were drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib: `pip install matplotlib`.") from error
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in (("bits", _bits), ("errors", _errors), ("front", _front)):
        figure = Figure(figsize=(8, 4), layout="constrained")
        if not draw(figure, record):
            continue
        file = folder / f"{name}.png"
        with written_whole(file) as temporary:
            figure.savefig(temporary, dpi=120)
        drawn.append(file)
    return drawn


def _bits(figure: Any, record: Mapping[str, Any]) -> bool:
    import numpy as np

    lists = lists_of(record["layers"])
    if not lists:
        return False
    where, blocks = max(lists.items(), key=lambda item: len(item[1]))
    names = list(dict.fromkeys(name for layers in blocks.values() for name in layers))
    grid = np.full((len(names), len(blocks)), np.nan)
    for column, layers in enumerate(blocks.values()):
        for name, layer in layers.items():
            grid[names.index(name), column] = mean_width(layer["widths"])
    axes = figure.subplots()
    image = axes.imshow(grid, cmap=BLUES, vmin=1, vmax=8, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(names)), [short_name(name) for name in names], parse_math=False)
    axes.set_xlabel("block")
    axes.set_title(where, fontsize=10, parse_math=False)
    figure.colorbar(image, ax=axes, label="bits")
    return True


def _errors(figure: Any, record: Mapping[str, Any]) -> bool:
    axes, found = figure.subplots(), False
    for key, name in ERRORS.items():
        values = [target[key] if target[key] else float("nan") for target in record["targets"]]
        if any(value == value for value in values):
            axes.plot(range(len(values)), values, ".-", label=name)
            found = True
    if found:
        axes.set(yscale="log", xlabel="target, in the order of calibration", ylabel="relative squared error")
        axes.grid(alpha=0.3)
        axes.legend()
    return found


def _front(figure: Any, record: Mapping[str, Any]) -> bool:
    prices = record["prices"]
    points = [point for point in (prices or {}).get("front", []) if point[2] > 0]
    if not points:
        return False
    axes = figure.subplots()
    axes.plot([p[0] for p in points], [p[2] for p in points], ".-", label="chosen layer by layer")
    low, high = points[0][0] - 0.5, points[-1][0] + 0.5
    uniform = [p for p in prices["uniform"] if p[2] > 0 and low <= p[0] <= high]
    axes.plot([p[0] for p in uniform], [p[2] for p in uniform], "s", label="one width everywhere")
    named = {"knee": prices["front"][prices["knee"]], "this model": prices["chosen"]}
    for name, point in named.items():
        if point is not None and point[2] > 0:
            axes.annotate(f"{name}: {point[0]:.2f} bits", (point[0], point[2]), (12, 12), textcoords="offset points")
    axes.set(yscale="log", xlabel="stored bits a weight", ylabel=f"predicted loss ({prices['cost']})")
    axes.yaxis.label.set_parse_math(False)
    axes.grid(alpha=0.3)
    axes.legend()
    return True
