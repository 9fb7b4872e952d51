"""The tables of figures in README.md and docs/: functions that read ledgers in `results/` and return Markdown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ledger import RESULTS, Row, rows_of

__all__ = ["RESULTS", "TABLES", "Row", "markdown", "rows_of", "table"]
TABLES: dict[str, Callable[[], str]] = {}
"""Name → what makes the table. The other modules fill it."""


def table(name: str, *arguments: Any) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Registers a function, with its arguments, as the source of a table; it may be the source of several."""

    def register(source: Callable[..., str]) -> Callable[..., str]:
        TABLES[name] = functools.partial(source, *arguments)
        return source

    return register


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
