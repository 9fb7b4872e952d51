"""Shows the Pareto front of a model under a budget of bits: predicted loss against size, as a table and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..plan.allocate import Allocation
from ..plan.coverage import Coverage
from ..utils.files import written_whole
from ..utils.readable import readable_size

BAR = 32
"""Characters of the longest bar in the table."""


@dataclass(frozen=True)
class Point:
    """One plan on the front.

    Attributes:
        bits: stored bits per packed weight.
        size: of all weights of the saved model, in bytes.
        loss: predicted; in nats per answer token, except for the cost `"output_error"`.
        widths: bits → how many linears have them.
    """

    bits: float
    size: float
    loss: float
    widths: dict[int, int]

    @classmethod
    def of(cls, allocation: Allocation, coverage: Coverage) -> Point:
        """Makes the point of an allocation; `coverage` has the size of the rest of the model."""
        widths = Counter(scheme.bits for scheme in allocation.schemes.values())
        return cls(
            allocation.size / coverage.packed,
            (allocation.size + coverage.other_bits) / 8,
            allocation.cost,
            dict(sorted(widths.items())),
        )


@dataclass(frozen=True)
class Front:
    """The best plans at several sizes, and uniform plans to compare them with.

    Attributes:
        points: the best plans, sizes rising.
        knee: index of the point after which a bit buys less than on average.
        uniform: every linear at one width, for comparison.
    """

    points: Sequence[Point]
    knee: int
    uniform: Sequence[Point]


def table(front: Front) -> str:
    """Formats the front as plain text: a row for each point, with a bar as long as its loss against the largest."""
    most = max(point.loss for point in front.points)
    lines = [f"{'bits':>6}  {'model':>10}  {'predicted loss':>14}  widths (linears)"]
    for index, point in enumerate(front.points):
        bar = "#" * round(BAR * max(point.loss, 0.0) / most) if most > 0 else ""
        lines.append(f"{_row(point)}  {bar}" + ("  <- knee" if index == front.knee else ""))
    lines.append("every linear at one width:")
    lines += [_row(point) for point in front.uniform]
    return "\n".join(lines)


def plot(front: Front, path: str | Path) -> None:
    """Draws the front to a picture file, with loss on a logarithmic axis.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing the front needs matplotlib: pip install matplotlib, or leave the plot out."
        ) from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
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
    axes.set(xlabel="stored bits per packed weight", ylabel="predicted loss")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _row(point: Point) -> str:
    widths = ", ".join(f"{count} x {bits}" for bits, count in point.widths.items())
    return f"{point.bits:6.3f}  {readable_size(8 * point.size):>10}  {point.loss:14.3e}  {widths:34}"
