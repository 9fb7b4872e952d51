"""Draws the bits of every layer as heat strips: a column for each block, a row for each projection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .markup import escaped

CELL, LEAST, ROW = 16, 9, 18
"""Width of a column, also where there are many, and height of a row, in pixels."""
ROOM = 1000
"""Pixels that a wide screen has for a strip."""
SHADES = 8
"""Colours of the style, `b1` to `b8`."""
Cell = tuple[str, str]
"""Class of the style, and words."""
PLAIN = "full"
"""Stands for a layer of other blocks that is not packed in this one."""


def shade(bits: float) -> str:
    """Returns the class of a mean width."""
    return f"b{min(max(round(bits), 1), SHADES)}"


def mean_width(widths: Mapping[str, int]) -> float:
    """Returns the mean of a layer's widths: of several experts, say."""
    return sum(int(bits) * count for bits, count in widths.items()) / max(sum(widths.values()), 1)


def format_width(widths: Mapping[str, int]) -> str:
    """Returns a layer's widths in words."""
    if len(widths) == 1:
        return f"{next(iter(widths))} bits"
    return ", ".join(f"{count} × {bits} bits" for bits, count in widths.items())


def lists_of(layers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Sorts layers: path of a list of blocks → path of a block → name of a layer in it → the layer.

    What is not in a numbered block stands below its own name.
    """
    lists: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for layer in layers:
        parent, _, number = layer["block"].rpartition(".")
        where = parent if number.isdecimal() else layer["block"]
        lists[where][layer["block"]][layer["name"]] = layer
    return {where: dict(blocks) for where, blocks in lists.items()}


def strips(layers: Sequence[Mapping[str, Any]]) -> str:
    """Returns a strip for each list of blocks, and a legend of the widths."""
    widths = sorted({int(bits) for layer in layers for bits in layer["widths"]})
    if not widths:
        return ""
    legend = "".join(f'<span><i class="{shade(bits)}"></i>{bits}</span>' for bits in widths)
    if any(len(layer["widths"]) > 1 for layer in layers):
        legend += '<span><i class="mixed"></i>several</span>'
    parts = [f'<p class="legend">bits: {legend}<span><i class="{PLAIN}"></i>not packed</span></p>']
    parts += [_strip(where, blocks) for where, blocks in lists_of(layers).items()]
    return "".join(parts)


def _strip(where: str, blocks: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for layers in blocks.values() for name in layers))
    columns = {path: {name: _cell(path, name, layers.get(name)) for name in names} for path, layers in blocks.items()}
    return drawn_strip(where, columns, f"bits of {where}", chosen_by_click=True)


def _cell(path: str, name: str, layer: Mapping[str, Any] | None) -> Cell:
    kind = PLAIN if layer is None else shade(mean_width(layer["widths"]))
    mixed = " mixed" if layer is not None and len(layer["widths"]) > 1 else ""
    return kind + mixed, f"{path} {name}: {'not packed' if layer is None else format_width(layer['widths'])}"


def drawn_strip(
    where: str, columns: Mapping[str, Mapping[str, Cell]], label: str, *, chosen_by_click: bool = False
) -> str:
    """Returns a heat strip.

    Args:
        where: path of the list of blocks.
        columns: path of a block → name of a layer in it → class and words of its cell. A layer may be missing.
        label: what is drawn, for who cannot see it.
        chosen_by_click: whether the page's script says more of a block.
    """
    names = list(dict.fromkeys(name for layers in columns.values() for name in layers))
    labels = "".join(f'<div title="{escaped(name)}">{escaped(short_name(name) or where)}</div>' for name in names)
    groups, cell = [], cell_width(len(columns))
    for column, (path, layers) in enumerate(columns.items()):
        drawn = "".join(
            f'<rect x="{column * cell}" y="{row * ROW}" width="{cell - 2}" height="{ROW - 2}" '
            f'class="{layers[name][0]}"><title>{escaped(layers[name][1])}</title></rect>'
            for row, name in enumerate(names)
            if name in layers
        )
        groups.append(f'<g data-block="{escaped(path)}" tabindex="0">{drawn}</g>' if chosen_by_click else drawn)
    every = 1 if len(columns) < 12 else 4 if len(columns) < 50 else 8
    height = len(names) * ROW
    marks = "".join(
        f'<text x="{column * cell}" y="{height + 12}">{escaped(path.rpartition(".")[2])}</text>'
        for column, path in enumerate(columns)
        if column % every == 0 and path != where
    )
    width, full = len(columns) * cell, height + 16
    picture = (
        f'<svg width="{width}" height="{full}" viewBox="0 0 {width} {full}" role="img" '
        f'aria-label="{escaped(label)}">{"".join(groups)}{marks}</svg>'
    )
    return (
        f'<h3>{escaped(where)}</h3><div class="strip"><div class="labels">{labels}</div>'
        f'<div class="scroll">{picture}</div></div>'
    )


def cell_width(blocks: int) -> int:
    """Returns how wide a block's column is: narrower where many would not fit on a wide screen."""
    return max(LEAST, min(CELL, ROOM // max(blocks, 1)))


def short_name(name: str) -> str:
    """Returns the last two parts of a layer's name; the number of an expert is none."""
    return ".".join([part for part in name.split(".") if part != "*"][-2:])
