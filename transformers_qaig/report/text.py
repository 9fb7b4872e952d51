"""Formats plain text for terminals: tables with aligned columns, and bars in a line."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"
_UNKNOWN = "·"


def aligned(rows: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Formats rows as lines with aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        lines.append(gap.join(cells).rstrip())
    return "\n".join(lines)


def with_interval(figure: Sequence[float | None], form: str) -> str:
    """Formats [value, lower, upper] as `0.8 (0.7 to 0.9)`; without bounds the value alone."""
    value, lower, upper = figure
    text = format(value, form)
    return text if lower is None or upper is None else f"{text} ({lower:{form}} to {upper:{form}})"


def labelled(facts: Sequence[tuple[str, str]]) -> str:
    """Formats names and values as lines, the values in one column."""
    width = max((len(name) for name, _ in facts), default=0)
    return "\n".join(f"{name:{width}}  {value}" for name, value in facts)


def sparkline(values: Sequence[float]) -> str:
    """Draws a bar for each value, from 0 to the largest; a dot for one that is not finite."""
    most = max((value for value in values if math.isfinite(value)), default=0.0)
    if most <= 0:
        return "".join(_BARS[0] if math.isfinite(value) else _UNKNOWN for value in values)
    top = len(_BARS) - 1
    return "".join(
        _BARS[min(top, int(max(value, 0.0) / most * top + 0.5))] if math.isfinite(value) else _UNKNOWN
        for value in values
    )
