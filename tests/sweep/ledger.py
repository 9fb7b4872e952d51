"""The rows of the sweep as a ledger, from which the documentation's table is made."""

import contextlib
import dataclasses
import datetime
import json
from pathlib import Path

import transformers

from tests.sweep.rows import Row

LEDGER = Path(__file__).parent / "families.jsonl"


def read() -> dict[str, dict[str, object]]:
    """Returns the ledger's rows by family: what was found, with the version of Transformers and the date."""
    with contextlib.suppress(FileNotFoundError):
        return {row["family"]: row for row in map(json.loads, LEDGER.read_text().splitlines())}
    return {}


def add(row: Row) -> None:
    """Writes a row in the place of the family's earlier one; families are in the order of their names."""
    rows = read()
    when = {"transformers": transformers.__version__, "date": datetime.date.today().isoformat()}
    rows[row.family] = dataclasses.asdict(row) | {"works": row.works} | when
    lines = (json.dumps(rows[family], ensure_ascii=False) for family in sorted(rows, key=str.lower))
    LEDGER.write_text("\n".join(lines) + "\n")
