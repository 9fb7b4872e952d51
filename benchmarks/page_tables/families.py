"""The support table: one row a family, from the sweep's ledger (`python -m tests.sweep`)."""

from __future__ import annotations

import json

from page_tables import RESULTS, Row, markdown, table

LEDGER = RESULTS.parents[1] / "tests" / "sweep" / "families.jsonl"

STEPS = {
    "built": "Transformers",
    "rtn": "`rtn`",
    "default": "`default`",
    "round_trip": "save and load",
    "generate": "generate",
}
PARTS = {"tower": "tower", "head": "head"}


def _rows() -> list[Row]:
    lines = LEDGER.read_text().splitlines()
    return [json.loads(line) for line in lines]


@table("families")
def families() -> str:
    """Every family: what is packed, and what does not work."""
    head = ["family", "packed", "experts", "works", "tower", "head"]
    return markdown(head, [_cells(row) for row in _rows()])


@table("families-summary")
def summary() -> str:
    """How many families of each kind work."""
    rows = _rows()
    works, refused = (sum(bool(row[key]) for row in rows) for key in ("works", "refused"))
    versions, dates = ({str(row[key]) for row in rows} for key in ("transformers", "date"))
    cells = [len(rows), works, refused, len(rows) - works - refused, ", ".join(sorted(versions)), max(dates)]
    head = ["families", "work", "refused", "do not work", "Transformers", "measured"]
    return markdown(head, [[str(cell) for cell in cells]])


def _cells(row: Row) -> list[str]:
    packed = f"{row['coverage']:.1%}" if row["coverage"] else "–"
    parts = ["yes" if row["works"] and not row[name] else "no" for name in PARTS]
    return [row["family"], packed, str(row["experts"]) or "–", _verdict(row), *parts]


def _verdict(row: Row) -> str:
    if row["works"]:
        return "yes"
    if row["refused"]:
        return f"refused: {row['refused']}".replace("|", "/")
    step = next(name for name in STEPS if row[name])
    return f"no, {STEPS[step]}: {row[step]}".replace("|", "/")
