"""The section of a page that says what one bit less costs: a table of parts, and heat strips of layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from ...plan.width_costs import OneBitLess, by_part, loss_per_megabyte
from .markup import section, table
from .strips import drawn_strip

SHADES = 7


def marginal_section(layers: Sequence[OneBitLess], bits: int) -> str:
    """Returns the section of a page: a table of parts, and a heat strip of the loss a saved byte in each layer."""
    rows = [
        (part, f"{loss:.2e}", f"{saved / 1e6:.3f}", f"{loss_per_megabyte(loss, saved):.2e}")
        for part, loss, saved in by_part(layers)
    ]
    head = ("part", "predicted loss", "MB saved", "loss a MB")
    return section(
        f"One bit less than {bits}",
        table(head, rows),
        _legend([layer.rate for layer in layers]),
        _strips(layers),
        name="marginal",
        note="A shade is the loss for each megabyte that a bit less saves, on a logarithmic scale.",
    )


def _legend(rates: Sequence[float]) -> str:
    """Returns what the first and the last shade stand for. The last is the darkest on a light page only."""
    shown = [rate for rate in rates if rate > 0]
    if not shown:
        return ""
    shades = "".join(f'<i class="b{shade + 1}"></i>' for shade in range(SHADES + 1))
    return f'<p class="legend">loss a MB: {min(shown):.1e} {shades} {max(shown):.1e}</p>'


def _strips(layers: Sequence[OneBitLess]) -> str:
    rates = [layer.rate for layer in layers]
    shades = dict(zip(((layer.block, layer.name) for layer in layers), shades_of(rates)))
    lists: dict[str, dict[str, dict[str, OneBitLess]]] = defaultdict(lambda: defaultdict(dict))
    for layer in layers:
        parent, _, number = layer.block.rpartition(".")
        lists[parent if number.isdecimal() else layer.block][layer.block][layer.name] = layer
    return "".join(_strip(where, blocks, shades) for where, blocks in lists.items())


def _strip(where: str, blocks: Mapping[str, Mapping[str, OneBitLess]], shades: Mapping[tuple[str, str], int]) -> str:
    columns = {
        block: {
            name: (f"b{shades[block, name] + 1}", f"{block} {name}: {layer.loss:.2e}") for name, layer in layers.items()
        }
        for block, layers in blocks.items()
    }
    return drawn_strip(where, columns, f"what one bit less costs in {where}")


def shades_of(values: Sequence[float]) -> list[int]:
    """Returns a shade from 0 to `SHADES` for each value, on a logarithmic scale; 0 for none above 0."""
    logs = [math.log(value) for value in values if value > 0]
    if not logs:
        return [0] * len(values)
    low, span = min(logs), (max(logs) - min(logs)) or 1.0
    return [round((math.log(value) - low) / span * SHADES) if value > 0 else 0 for value in values]
