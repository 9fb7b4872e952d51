"""The tables of figures in README.md and docs/: functions that read ledgers in `results/` and return Markdown."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"

Row = dict[str, Any]
TABLES: dict[str, Callable[[], str]] = {}
"""Name → what makes the table. `answers` and `speed` fill it."""


def table(name: str, *arguments: Any) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Registers a function, with its arguments, as the source of a table; it may be the source of several."""

    def register(source: Callable[..., str]) -> Callable[..., str]:
        TABLES[name] = functools.partial(source, *arguments)
        return source

    return register


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def files(patterns: Sequence[str]) -> list[Path]:
    """Paths of ledgers; `{a,b}` in a name stands for both."""
    found = []
    for pattern in patterns:
        start, _, rest = pattern.partition("{")
        names = rest.rstrip("}").split(",") if rest else [""]
        found += [RESULTS / f"{start}{name}.jsonl" for name in names]
    return found


def rows_of(*patterns: str) -> Iterator[Row]:
    for path in files(patterns):
        yield from map(json.loads, path.read_text().splitlines())
