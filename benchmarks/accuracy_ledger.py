"""Rows of `accuracy.py` with what each question cost, so that rows of different days can be paired.

    python benchmarks/accuracy.py rows.jsonl …
    python benchmarks/accuracy_ledger.py accuracy rows.jsonl    # merges them into results/, without errors

`NAME.jsonl` has a row per line; `NAME.npz` beside it the figures per question under the row's key, and once the
questions' own facts. Plain arrays: no pickle.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ledger import RESULTS, begin_run, keep_runs, known_runs

from transformers_qaig.report.statistics import AnswerStatistics

IDENTITY = ("method", "bits", "group_size", "activation_bits", "calibration", "samples")
"""What tells one row from another; the questions are the same in the whole file."""
ORIGIN = ("date", "commit", "command", "machine", "versions")
"""What a row of `accuracy.py` says of its run; in `results/` it names the run instead."""
QUESTIONS = ("tokens", "task", "conversation")
FIGURES = {"exact": np.bool_, "nll": np.float32, "kl": np.float32, "agreement": np.float32}


def key_of(row: Mapping[str, Any]) -> str:
    """`method=hqq,bits=3,…`: the row's name in the npz file."""
    return ",".join(f"{name}={row[name]}" for name in IDENTITY)


class Ledger:
    """
    A pair of files, read whole and written whole: one process at a time.

    Attributes:
        rows: dicts with at least `IDENTITY`; those with `"error"` have no figures.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise ValueError(f"a ledger is a .jsonl file, got {str(path)!r}.")
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, Any] = {}
        if self.path.exists():
            self.rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        if self.path.with_suffix(".npz").exists():
            with np.load(self.path.with_suffix(".npz"), allow_pickle=False) as file:
                self.arrays = dict(file)

    def has(self, row: Mapping[str, Any], retry: bool = False) -> bool:
        """Whether a row with this identity is there; with `retry`, only if it has figures."""
        return any(key_of(row) == key_of(known) and not (retry and "error" in known) for known in self.rows)

    def add(self, row: Mapping[str, Any], statistics: AnswerStatistics | None) -> None:
        """
        Keep a row, in place of one with the same identity, and write both files.

        Raises:
            ValueError: its questions are others than those of the rows before.
        """
        if statistics is not None:
            for name in QUESTIONS:
                known = self.arrays.setdefault(name, getattr(statistics, name))
                if not np.array_equal(known, getattr(statistics, name)):
                    raise ValueError(f"{self.path} has rows of other questions (their {name} differs): use a new file.")
            for name, dtype in FIGURES.items():
                self.arrays[f"{key_of(row)}/{name}"] = np.asarray(getattr(statistics, name)).astype(dtype)
        self.rows = [known for known in self.rows if key_of(known) != key_of(row)] + [dict(row)]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **self.arrays)
        # Figures first: a row without figures would be a lie, figures without a row are only never read.
        _replace(self.path.with_suffix(".npz"), buffer.getvalue())
        _replace(self.path, "".join(json.dumps(one) + "\n" for one in self.rows).encode())

    def statistics(self, row: Mapping[str, Any]) -> AnswerStatistics:
        """Figures per question of a row."""
        figures = {name: self.arrays[f"{key_of(row)}/{name}"] for name in FIGURES}
        figures = {name: values if values.dtype == bool else values.astype(float) for name, values in figures.items()}
        return AnswerStatistics(**figures, **{name: self.arrays[name] for name in QUESTIONS})


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def cells(
    methods: Mapping[str, Any], widths: Iterable[tuple[int, int]], calibrations: Iterable[int], samples: int, group: int
) -> list[dict[str, Any]]:
    """
    The rows to make: every method at every (bits, activation bits) it offers, once per calibration set it reads.

    Args:
        methods: name → `accuracy_peers.Method`.
    """
    calibrations = list(calibrations)
    found = []
    for bits, activation_bits in widths:
        for name, method in methods.items():
            if bits not in method.widths or (activation_bits < 16 and not method.rounds_activations):
                continue
            reads = method.calibrates or (activation_bits < 16 and method.calibrates_activations)
            for first in calibrations if reads else ["-"]:
                values = (name, bits, group, activation_bits, first, samples if reads else 0)
                found.append(dict(zip(IDENTITY, values)))
    return found


def merge(name: str, path: Path) -> int:
    """
    Merges what `accuracy.py` wrote into the ledger of that name in `results/`, and the facts of its runs.

    Args:
        name: `accuracy`, `accuracy_story`, …
        path: the `.jsonl` file; rows with errors are left out.

    Returns:
        how many rows were merged.

    Raises:
        ValueError: the questions are others than the ledger's, or the rows are of uncommitted code.
    """
    new, ledger, runs = Ledger(path), Ledger(RESULTS / f"{name}.jsonl"), known_runs()
    measured = [row for row in new.rows if "error" not in row]
    if dirty := [row for row in measured if row["commit"].endswith("+")]:
        raise ValueError(f"{path} has {len(dirty)} rows of uncommitted code: measure at a commit.")
    begun: dict[str, str] = {}
    for row in measured:
        origin = {field: row[field] for field in ORIGIN}
        origin["command"] = re.sub(r"(?<!\S)/\S*/", "", origin["command"]).replace(path.name, f"{name}.jsonl")
        facts = json.dumps(origin, sort_keys=True)
        if facts not in begun:
            begun[facts] = begin_run(runs, name, origin)
        kept = {field: value for field, value in row.items() if field not in ORIGIN}
        ledger.add({"run": begun[facts], **kept, "changed": len(row["changed"])}, new.statistics(row))
    keep_runs(runs, name, ledger.rows)
    return len(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledger", help="a name in results/, such as accuracy_story")
    parser.add_argument("rows", type=Path, help="the .jsonl file that accuracy.py wrote; its .npz is beside it")
    options = parser.parse_args()
    print(f"{options.ledger}: {merge(options.ledger, options.rows)} rows merged")


if __name__ == "__main__":
    main()
