"""
What an installed transformers-qaig adds to the start of a program that does not use it.

    python benchmarks/import_cost.py --without OTHER/bin/python --with ONE/bin/python > rows.jsonl

Both environments hold the same packages; this one is installed in one of them, from a wheel. Each statement runs in
processes of its own, which take turns, and change their order in every pair. Counted is a whole process: Python's
start, the statement and the end. Files are in the page cache.

One JSON line per statement: medians in milliseconds, of processor time and of the wall clock, and the median of the
differences within pairs, with an interval that holds 95 % of 10,000 resamplings of the pairs.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import time
from typing import Any

from ledger import provenance

BACKENDS = "from importlib.metadata import entry_points as of; [each.load()() for each in of(group='torch.backends')]"
"""What `import torch` does for packages, alone: all else of it hides a millisecond."""
STATEMENTS = {
    "backends": BACKENDS,
    "torch": "import torch",
    "transformers": "import transformers",
    "model": "from transformers import AutoModelForImageTextToText",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", required=True, help="a Python")
    parser.add_argument("--with", dest="having", required=True, help="a Python that has the package, too")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--statements", nargs="+", default=list(STATEMENTS), choices=STATEMENTS)
    options = parser.parse_args()
    print(json.dumps(provenance()), flush=True)
    for name in options.statements:
        statement = STATEMENTS[name]
        times: dict[str, list[tuple[float, float]]] = {options.without: [], options.having: []}
        for python in times:
            run(python, statement)  # reads the files, and compiles them
        for pair in range(options.pairs):
            for python in list(times)[:: 1 if pair % 2 else -1]:
                times[python].append(run(python, statement))
        row: dict[str, Any] = {"statement": name, "pairs": options.pairs}
        for index, clock in enumerate(("cpu", "wall")):
            without, having = ([each[index] for each in times[python]] for python in times)
            added = [b - a for a, b in zip(without, having)]
            row[f"{clock}_ms"] = round(statistics.median(without), 2)
            row[f"added_{clock}_ms"] = round(statistics.median(added), 2)
            row[f"added_{clock}_interval"] = interval(added)
        print(json.dumps(row), flush=True)


def run(python: str, statement: str) -> tuple[float, float]:
    """Milliseconds of the processor, in user and system, and of the wall clock."""
    start = time.perf_counter()
    process = subprocess.Popen([python, "-c", statement], cwd="/")  # no package lies there
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = status
    if status:
        raise RuntimeError(f"{python}: {statement!r} ended with status {status}")
    return 1e3 * (used.ru_utime + used.ru_stime), 1e3 * wall


def interval(values: list[float]) -> list[float]:
    random.seed(0)
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(10_000))
    return [round(medians[250], 2), round(medians[9749], 2)]


if __name__ == "__main__":
    main()
