"""Escapes text for HTML, and makes elements of it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ...utils.printable import printable

WIDE, NARROW = 960, 360
"""Widths that every chart is drawn for; the style shows the one that fits."""


def escaped(text: object) -> str:
    """Returns text that can stand in an element or in a quoted attribute."""
    return html.escape(printable(str(text)), quote=True)


def data_script(name: str, data: Any) -> str:
    """Returns data for the page's script, which no text in it can end."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{escaped(name)}">{text}</script>'


def section(title: str, *parts: str, note: str = "", name: str = "") -> str:
    """Returns a part of the page with a heading; nothing if it has no content."""
    if not any(parts):
        return ""
    anchor = f' id="{escaped(name)}"' if name else ""
    said = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f"<section{anchor}><h2>{escaped(title)}</h2>{said}{''.join(parts)}</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 1) -> str:
    """Returns a table that scrolls by itself if it is too wide; cells from column `numbers` on are numbers."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if index >= numbers else ''}>{escaped(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def both_widths(draw: Any) -> str:
    """Returns `draw(width)` for wide and for narrow screens."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def svg(width: float, height: float, *parts: str, label: str) -> str:
    """Returns a picture that fills the width of its parent."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escaped(label)}">{"".join(parts)}</svg>'
    )


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """Returns a line of text in a picture."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{escaped(kind)}" text-anchor="{anchor}">{escaped(text)}</text>'
