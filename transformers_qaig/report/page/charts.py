"""Draws lines on a logarithmic axis: errors by block, and predicted loss against size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .markup import both_widths, escaped, label, svg

HEIGHT, TOP, BOTTOM = 264, 12, 38
Value = float | None


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend.
        x: positions.
        y: values; None and what is not positive leave a gap.
        kind: class of the style.
        dots: whether the points are drawn alone, unconnected.
        blocks: paths of blocks that points stand for, for clicks.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Value]
    kind: str
    dots: bool = False
    blocks: Sequence[str] = ()


def chart(
    lines: Sequence[Line], x_label: str, y_label: str, *, marks: Sequence[tuple[float, float, str]] = (), ticks: int = 0
) -> str:
    """Returns a chart with a legend.

    Args:
        lines: to draw.
        x_label: below the axis.
        y_label: above the axis.
        marks: x, y and words of points to name.
        ticks: of the x axis: how far apart; 0: four round ones.
    """
    lines = [line for line in lines if any(_shown(line.y))]
    if not lines:
        return ""
    values = [value for line in lines for value in _shown(line.y)]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = (low - 0.1, high + 0.1) if high - low > 0.3 else (low - 0.3, high + 0.3)
    xs = [x for line in lines for x in line.x]
    left_x, right_x = min(xs), max(xs)
    span = (right_x - left_x) or 1.0

    def draw(width: int) -> str:
        left, right = 52.0, width - 12.0

        def at(x: float, y: float) -> tuple[float, float]:
            across = (x - left_x) / span if right_x > left_x else 0.5
            return left + across * (right - left), TOP + (high - math.log10(y)) / (high - low) * (HEIGHT - TOP - BOTTOM)

        parts = [_y_axis(low, high, left, right)]
        step = ticks or _step(span, 4 if width < 500 else 8)
        first = math.ceil(left_x / step) * step
        while first <= right_x + 1e-9:
            x, _ = at(first, 10**low)
            parts.append(label(x, HEIGHT - 20, f"{first:g}", "tick", "middle"))
            first += step
        parts.append(label((left + right) / 2, HEIGHT - 5, x_label, "tick", "middle"))
        drawn = [[at(x, y) if y and y > 0 else None for x, y in zip(line.x, line.y)] for line in lines]
        parts += [_line(line, points) for line, points in zip(lines, drawn)]
        named = [(*at(x, y), words) for x, y, words in marks]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" class="mark"/>' for x, y, _ in named]
        covered = [(x + 7 * i, y + 7 * j) for x, y, _ in named for i in (-1, 0, 1) for j in (-1, 0, 1)] * 3
        covered += [(left - 6 - 7 * k, at(left_x, value)[1]) for value in _decades(low, high) for k in range(5)]
        for line, points in zip(lines, drawn):
            covered += 2 * list(_inked(points, line.dots))
        for x, y, words in named:
            place = free_place(x, y, words, (2.0, width - 2.0), covered)
            parts.append(label(place.x, place.y, words, "strong", place.anchor))
            covered += place.corners(words)
        return svg(width, HEIGHT, *parts, label=f"{y_label} against {x_label}")

    keys = "".join(
        f'<span><i class="{"dot" if line.dots else "line"} {escaped(line.kind)}"></i>{escaped(line.name)}</span>'
        for line in lines
    )
    return f'<p class="legend">{escaped(y_label)}: {keys}</p>{both_widths(draw)}'


@dataclass(frozen=True)
class Place:
    """Where a label stands: its start or its end, and its baseline."""

    x: float
    y: float
    anchor: str

    def box(self, words: str) -> tuple[float, float, float, float]:
        """Returns left, top, right and bottom. A letter is taken as 7.5 pixels wide."""
        width = 7.5 * len(words)
        left = self.x - width if self.anchor == "end" else self.x
        return left, self.y - 12, left + width, self.y + 4

    def corners(self, words: str) -> list[tuple[float, float]]:
        """Returns points all over the label, which other labels must leave free."""
        left, top, right, bottom = self.box(words)
        return [(left + (right - left) * k / 8, y) for k in range(9) for y in (top, bottom)]


def free_place(
    x: float, y: float, words: str, inside: tuple[float, float], covered: Sequence[tuple[float, float]]
) -> Place:
    """Returns the place beside a point whose label covers least of what is drawn, and stays within the picture."""
    places = [
        Place(x + across, y + down, "start" if across > 0 else "end")
        for down in (-10, 22, -26, 38)
        for across in (10, -10)
    ]

    def badness(place: Place) -> float:
        left, top, right, bottom = place.box(words)
        outside = max(inside[0] - left, 0) + max(right - inside[1], 0) + max(-top, 0) + max(bottom - HEIGHT + BOTTOM, 0)
        return 10 * outside + sum(left - 2 <= px <= right + 2 and top - 2 <= py <= bottom + 2 for px, py in covered)

    return min(places, key=badness)


def _inked(points: Sequence[tuple[float, float] | None], dots: bool) -> Iterator[tuple[float, float]]:
    """Yields points of a drawn line, a few pixels apart."""
    before = None
    for point in points:
        if before and point and not dots:
            steps = max(1, int(math.dist(before, point) / 4))
            yield from (
                (before[0] + (point[0] - before[0]) * k / steps, before[1] + (point[1] - before[1]) * k / steps)
                for k in range(steps)
            )
        if point:
            yield point
        before = point


def _shown(values: Sequence[Value]) -> list[float]:
    return [value for value in values if value is not None and value > 0]


def _step(span: float, most: int) -> float:
    """Returns a round distance of at most so many ticks."""
    rough = span / max(most, 1)
    power = 10 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)


def _y_axis(low: float, high: float, left: float, right: float) -> str:
    parts = []
    for value in _decades(low, high):
        y = TOP + (high - math.log10(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line x1="{left:.0f}" x2="{right:.0f}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(label(left - 6, y + 4, f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e"), "tick", "end"))
    return "".join(parts)


def _decades(low: float, high: float) -> Iterator[float]:
    factors = (1,) if high - low > 1.5 else (1, 2, 5)
    for power in range(math.floor(low), math.ceil(high) + 1):
        for factor in factors:
            if low <= math.log10(factor * 10.0**power) <= high:
                yield factor * 10.0**power


def _line(line: Line, points: Sequence[tuple[float, float] | None]) -> str:
    parts, kind = [], escaped(line.kind)
    if not line.dots:
        path, pen = [], "M"
        for point in points:
            if point is None:
                pen = "M"
                continue
            path.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            pen = "L"
        parts.append(f'<path d="{"".join(path)}" class="line {kind}"/>')
    for index, point in enumerate(points):
        if point is None:
            continue
        block = line.blocks[index] if index < len(line.blocks) else ""
        where = f' data-block="{escaped(block)}"' if block else ""
        said = f"{block or format(line.x[index], '.4g')} {line.name}: {line.y[index]:.3g}"
        parts.append(
            f'<circle cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="{4 if line.dots else 2.5}" class="dot {kind}"{where}>'
            f"<title>{escaped(said)}</title></circle>"
        )
    return "".join(parts)
