"""Shows the Pareto front of a model under a budget: predicted loss against size, as a table and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..plan.front import Front, Point
from ..utils.files import written_whole
from ..utils.readable import readable_size

BAR = 32
"""Characters of the longest bar in the table."""


def table(front: Front) -> str:
    """Formats the front as plain text: a row for each point, with a bar as long as its loss against the largest."""
    most = max(point.loss for point in front.points)
    lines = [f"{'bits':>6}  {'model':>10}  {'predicted loss':>14}  widths (weights)"]
    for index, point in enumerate(front.points):
        bar = "#" * round(BAR * max(point.loss, 0.0) / most) if most > 0 else ""
        lines.append(f"{_row(point)}  {bar}" + ("  <- knee" if index == front.knee else ""))
    lines.append("every weight at one width:")
    lines += [_row(point) for point in front.uniform]
    return "\n".join(lines)


def plot(front: Front, path: str | Path, draw_below: Callable[[Any], None] | None = None) -> None:
    """Draws the front to a picture file, with loss on a logarithmic axis.

    Args:
        front: to draw.
        path: of the file.
        draw_below: draws more into a part of the figure below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing the front needs matplotlib: pip install matplotlib, or leave the plot out."
        ) from error
    figure = Figure(figsize=(7, 4.5) if draw_below is None else (11, 9), layout="constrained")
    upper: Any = figure
    if draw_below is not None:
        upper, lower = figure.subfigures(2, 1)  # type: ignore[misc]  # an array of two
        draw_below(lower)
    axes = upper.subplots()
    shown = [point for point in front.points if point.loss > 0]
    axes.plot([p.bits for p in shown], [p.loss for p in shown], "o-", ms=4, label="chosen under the budget")
    low, high = front.points[0].bits, front.points[-1].bits
    uniform = [p for p in front.uniform if p.loss > 0 and low - 0.5 <= p.bits <= high + 0.5]
    axes.plot([p.bits for p in uniform], [p.loss for p in uniform], "s", color="grey", label="one width everywhere")
    knee = front.points[front.knee]
    if knee.loss > 0:
        axes.annotate(
            f"knee: {knee.bits:.2f} bits", (knee.bits, knee.loss), (12, 18), textcoords="offset points",
            arrowprops={"arrowstyle": "->"},
        )  # fmt: skip
    if shown:
        axes.set_yscale("log")
    axes.set(xlabel="stored bits per weight", ylabel="predicted loss")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _row(point: Point) -> str:
    widths = ", ".join(f"{count} x {bits}" for bits, count in point.widths.items())
    return f"{point.bits:6.3f}  {readable_size(8 * point.size):>10}  {point.loss:14.3e}  {widths:34}"
