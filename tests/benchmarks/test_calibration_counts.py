"""The counts of what calibration asks of a GPU, of a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "calibration_counts.py"
TINY = ("--width", "0.04", "--tokens", "64", "--samples", "4", "6", "--scale-to", "16", "--check", "16")


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    command = [sys.executable, str(SCRIPT), "--runs", "rtn", "gptq", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    _, *found = map(json.loads, done.stdout.splitlines())
    return {row["task"]: row for row in found}


@pytest.mark.slow
def test_counts_grow_in_a_straight_line_with_the_samples(rows: dict[str, dict]) -> None:
    for row in rows.values():
        assert row["check"]["launches"] == 0
        assert row["check"]["to_device"] == 0
    assert rows["gptq"]["check"]["flop_16"] == 0


@pytest.mark.slow
def test_rounding_to_nearest_reads_no_samples(rows: dict[str, dict]) -> None:
    assert rows["rtn"]["flop_16"] == rows["rtn"]["flop_32"] == rows["rtn"]["flop_factor"] == 0
    assert rows["gptq"]["flop_factor"] > 0
    assert rows["gptq"]["launches"] > 2 * rows["rtn"]["launches"]


@pytest.mark.slow
def test_the_host_waits_less_than_once_per_fifty_launches(rows: dict[str, dict]) -> None:
    assert rows["gptq"]["syncs"] < rows["gptq"]["launches"] / 50
