"""The ledgers in `results/`: one JSON-lines file a benchmark, the newest row of each key.

    python benchmarks/cpu_gemm.py … > rows.jsonl
    python benchmarks/ledger.py cpu_gemm rows.jsonl     # replaces rows of the same key, and adds the others

A row names its run; `results/runs.jsonl` says of each run its date, commit, command and machine.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("transformers-qaig", "torch", "transformers")
Row = dict[str, Any]

KEYS: dict[str, tuple[str, ...]] = {
    "calibration_cost": ("step", "width", "model"),
    "calibration_counts": ("task", "samples", "tokens", "width"),
    "calibration_time": ("model", "method", "bits", "round"),
    "cpu_gemm": ("k", "n", "threads", "bits", "m", "op", "activations", "reason", "cpu_isa"),
    "device_memory": ("task", "phase"),
    "experts": ("hidden", "intermediate", "experts", "routed", "threads", "bits", "tokens", "op", "cpu_isa"),
    "generate": ("variant", "round", "cpu_isa"),
    "gpu_gemm": ("k", "n", "bits", "m", "op", "reason"),
    "gpu_generate": ("part", "variant"),
    "grad_input": ("k", "n", "m", "threads", "op", "cpu_isa"),
    "import_cost": ("statement",),
    "kv_cache": ("weights", "cache", "recipe"),
    "kv_cache_speed": ("cache", "context", "layers", "threads"),
    "lora": ("variant", "tokens", "threads", "clock", "round", "cpu_isa"),
    "lora_loss": ("trainer", "base", "learning_rate", "seed", "cpu_isa"),
    "mixed_bits": ("plan", "calibration", "width", "budget"),
    "several_processes": ("recipe", "processes", "samples", "tokens", "round"),
    "serving": ("variant", "batch", "threads", "layers", "clock", "round", "cpu_isa"),
    "routed_moments": ("calibration", "scenes", "bits", "weights"),
    "rotation": ("format", "rounding", "block", "calibration", "outliers"),
    "whole_file": ("model", "budget", "bits", "vision_bits", "lm_head_bits", "embedding_bits", "calibration"),
}
"""Ledger → what tells one of its rows from another. `accuracy_ledger.py` keeps those of `accuracy.py`."""


def provenance(packages: Iterable[str] = PACKAGES) -> Row:
    """Where a row comes from: date, commit (`+` for uncommitted changes), command, machine and versions."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": _processor(),
        "versions": versions,
    }


def rows_of(*names: str) -> Iterator[Row]:
    """The rows of ledgers, each with its run's facts."""
    runs = {run["run"]: run for run in known_runs()}
    for name in names:
        yield from (runs[row["run"]] | row for row in _read(RESULTS / f"{name}.jsonl"))


def add(name: str, rows: Sequence[Row]) -> int:
    """
    Merges what a benchmark printed into its ledger.

    Args:
        name: a key of `KEYS`.
        rows: the printed rows, oldest first; a row with a `"command"` and no figures begins a run.

    Returns:
        how many rows were replaced.

    Raises:
        ValueError: the first row does not say where it comes from.
    """
    runs = known_runs()
    known = {_key(name, row): row for row in _read(RESULTS / f"{name}.jsonl")}
    replaced, run = 0, None
    for row in rows:
        if "command" in row:
            run = begin_run(runs, name, row)
            continue
        if run is None:
            raise ValueError(f"The first row must say date, commit, command and machine, got {row}.")
        replaced += known.pop(_key(name, row), None) is not None
        known[_key(name, row)] = {"run": run} | row
    keep_runs(runs, name, known.values())
    _write(RESULTS / f"{name}.jsonl", known.values())
    return replaced


def known_runs() -> list[Row]:
    """The facts of every run."""
    return _read(RESULTS / "runs.jsonl")


def begin_run(runs: list[Row], name: str, facts: Row) -> str:
    """Adds a run of a ledger to the others, and returns what it is called."""
    numbers = (int(run["run"].rpartition("-")[2]) for run in runs if _is_of(run, name))
    called = f"{name}-{1 + max(numbers, default=0)}"
    runs.append({"run": called} | facts)
    return called


def keep_runs(runs: Iterable[Row], name: str, rows: Iterable[Row]) -> None:
    """Writes the facts of all runs, without those of this ledger that none of its rows names."""
    used = {row["run"] for row in rows}
    _write(RESULTS / "runs.jsonl", (run for run in runs if not _is_of(run, name) or run["run"] in used))


def _is_of(run: Row, name: str) -> bool:
    return run["run"].rpartition("-")[0] == name


def _key(name: str, row: Row) -> str:
    return json.dumps([row.get(field) for field in KEYS[name]], sort_keys=True)


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _commit() -> str | None:
    """The commit of this checkout, if it is one."""
    where = {"cwd": RESULTS.parent, "capture_output": True, "text": True}
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **where)
        changes = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **where)
    except FileNotFoundError:
        return None
    return head.stdout.strip() + "+" * bool(changes.stdout.strip()) if head.returncode == 0 else None


def _processor() -> str:
    """The processor's model name."""
    information = Path("/proc/cpuinfo")
    names = re.findall("model name\\s*: (.*)", information.read_text()) if information.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledger", choices=KEYS)
    parser.add_argument("rows", type=Path, help="what the benchmark printed")
    options = parser.parse_args()
    rows = _read(options.rows)
    replaced = add(options.ledger, rows)
    print(f"{options.ledger}: {replaced} rows replaced")


if __name__ == "__main__":
    main()
