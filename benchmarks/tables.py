"""
Writes the tables of figures in README.md and docs/ from the ledgers, or checks them.

    python benchmarks/tables.py            # writes every table anew
    python benchmarks/tables.py --check    # fails if a page does not hold what the ledgers say
    python benchmarks/tables.py --plot docs/assets/kl-size.png

A page asks for a table by name, and the table stands between the two comments:

    <!-- table: accuracy-w2 -->
    <!-- /table -->
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import page_tables.ablations
import page_tables.caches
import page_tables.calibration
import page_tables.experts
import page_tables.families
import page_tables.speed
import page_tables.training
import page_tables.whole_file  # noqa: F401  (all fill TABLES, as page_tables.answers does)
from page_tables import TABLES
from page_tables.answers import draw_summary

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"<!-- table: (?P<name>[\w-]+) -->\n(?P<text>.*?)<!-- /table -->", re.DOTALL)


def pages() -> Iterator[Path]:
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def filled(page: str, known: dict[str, str]) -> str:
    """
    The page with every table as the ledgers give it.

    Args:
        page: Markdown.
        known: tables made so far, by name; new ones are added.

    Raises:
        ValueError: the page asks for a table that does not exist.
    """

    def table(place: re.Match[str]) -> str:
        name = place["name"]
        if name not in TABLES:
            near = difflib.get_close_matches(name, TABLES, n=1)
            raise ValueError(f"There is no table {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        if name not in known:
            known[name] = TABLES[name]()
        return f"<!-- table: {name} -->\n{known[name]}\n<!-- /table -->"

    return PLACE.sub(table, page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page differs")
    parser.add_argument("--plot", type=Path, help="draw the summary of the README to this file, and stop")
    options = parser.parse_args()
    if options.plot is not None:
        draw_summary(options.plot)
        return 0
    check = options.check
    known: dict[str, str] = {}
    stale = 0
    for path in pages():
        before = path.read_text()
        after = filled(before, known)
        if before == after:
            continue
        stale += 1
        name = str(path.relative_to(ROOT))
        if check:
            print(
                *difflib.unified_diff(before.splitlines(), after.splitlines(), name, "ledgers", lineterm=""), sep="\n"
            )
        else:
            path.write_text(after)
            print(f"written: {name}")
    if check:
        print(f"{len(known)} tables compared with the ledgers, {stale} pages differ")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
