"""Draws the parts of a model as areas, before and after, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...utils.readable import readable_size
from .markup import both_widths, escaped, label, svg

Box = tuple[float, float, float, float]
LINE, CHARACTER = 15, 7.5
"""Height of a line and width of a character, in pixels."""


def treemap(sizes: Sequence[dict[str, Any]]) -> str:
    """Returns two pictures, whose areas are bytes; packed parts are coloured.

    Args:
        sizes: name, bits, before and after of each part, in bytes.
    """
    before, after = (sum(part[when] for part in sizes) for when in ("before", "after"))
    if not before or not after:
        return ""

    def draw(width: int) -> str:
        wide = width > 500
        room = (width - 20) / 2 if wide else float(width)
        height = room * (0.62 if wide else 0.75)
        parts, top = [], 0.0
        for index, (when, total) in enumerate((("before", before), ("after", after))):
            scale = (total / max(before, after)) ** 0.5
            left = index * (room + 20) if wide else 0.0
            parts.append(label(left, top + 13, f"{when}: {readable_size(8 * total)}", "strong"))
            parts.append(_parts(sizes, when, (left, top + 20, room * scale, height * scale)))
            top += 0 if wide else height * scale + 30
        full = height + 22 if wide else top
        return svg(width, full, *parts, label="bytes of each part before and after")

    return both_widths(draw)


def _parts(sizes: Sequence[dict[str, Any]], when: str, box: Box) -> str:
    ordered = sorted((part for part in sizes if part[when] > 0), key=lambda part: -part[when])
    drawn = []
    for part, (x, y, w, h) in zip(ordered, squarified([part[when] for part in ordered], box)):
        packed = bool(part["bits"]) and when == "after"
        said = f"{part['name']}: {readable_size(8 * part[when])}"
        said += f", {', '.join(map(str, part['bits']))} bits" if packed else (", not packed" if when == "after" else "")
        drawn.append(
            f'<g><title>{escaped(said)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{max(w - 2, 0.5):.1f}" '
            f'height="{max(h - 2, 0.5):.1f}" rx="2" class="{"packed" if packed else "plain"}"/>'
        )
        room, kind = int((w - 10) / CHARACTER), "on-packed" if packed else "on-plain"
        size = readable_size(8 * part[when])
        if room >= 4 and h > LINE + 4:
            drawn.append(label(x + 5, y + 14, _name(part["name"], room), kind))
            if h > 2 * LINE + 4 and len(size) <= room:
                drawn.append(label(x + 5, y + 14 + LINE, size, kind))
        drawn.append("</g>")
    return "".join(drawn)


def _name(name: str, room: int) -> str:
    """Returns a part's name, its last component, or the beginning of that: the first that fits into `room`."""
    last = name.rpartition(".")[2]
    # The ellipsis is as wide as two characters.
    return name if len(name) <= room else last if len(last) <= room else f"{last[: room - 2]}…"


def squarified(values: Sequence[float], box: Box) -> list[Box]:
    """Divides a box into boxes with areas as `values`, which fall, and sides as equal as possible.

    Args:
        values: positive, largest first.
        box: x, y, width, height.
    """
    x, y, w, h = box
    total = sum(values)
    if not total or w <= 0 or h <= 0:
        return [(x, y, 0.0, 0.0) for _ in values]
    areas = [value * w * h / total for value in values]
    boxes: list[Box] = []
    start = 0
    while start < len(areas):
        side = max(min(w, h), 1e-9)
        stop = start + 1
        while stop < len(areas) and _worst(areas[start : stop + 1], side) <= _worst(areas[start:stop], side):
            stop += 1
        row = areas[start:stop]
        thickness, along = sum(row) / side, 0.0
        for area in row:
            length = area / thickness if thickness else 0.0
            boxes.append((x, y + along, thickness, length) if w >= h else (x + along, y, length, thickness))
            along += length
        if w >= h:
            x, w = x + thickness, max(w - thickness, 0.0)
        else:
            y, h = y + thickness, max(h - thickness, 0.0)
        start = stop
    return boxes


def _worst(row: Sequence[float], side: float) -> float:
    """Returns the largest ratio of sides in a row of boxes."""
    total = sum(row)
    if not total or not min(row):
        return float("inf")
    return max(side * side * max(row) / total**2, total**2 / (side * side * min(row)))
