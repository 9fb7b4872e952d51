"""The count of device memory, of a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "device_memory.py"
TINY = ("--width", "0.04", "--tower-layers", "2", "--samples", "4", "--tokens", "96", "--picture", "112")
HIDDEN, INTERMEDIATE, BFLOAT16 = 128, 768, 2


@pytest.mark.slow
@pytest.mark.parametrize("inner", [(), ("--inner", "32")])
def test_a_tiny_model(inner):
    command = [sys.executable, str(SCRIPT), *TINY, *inner]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    about, *rows = map(json.loads, done.stdout.splitlines())
    assert about["samples"] == 4
    widths = ["rounding at each width", "gradients"]
    assert [(row["run"], row["phase"]) for row in rows] == [
        *[("default", phase) for phase in ("first forward passes", "block")],
        *[("fisher", phase) for _ in range(2) for phase in widths],
    ]
    assert all(row["peak_bytes"] > row["start_bytes"] for row in rows)
    # Where the block is treated nothing else is on the device yet: q, k, v, o and three biases, the MLP, two norms.
    block = 4 * HIDDEN**2 + 3 * HIDDEN + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN
    assert rows[1]["start_bytes"] == block * BFLOAT16
