"""The count of device memory, of a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "device_memory.py"
TINY = ("--width", "0.04", "--tower-layers", "2", "--samples", "4", "--tokens", "128", "--picture", "112")
HIDDEN, INTERMEDIATE, BFLOAT16 = 128, 768, 2
SAMPLES, TOKENS, HEAD_DIM = 4, 128, 128


def counted(*arguments: str) -> list[dict]:
    command = [sys.executable, str(SCRIPT), *TINY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    about, *rows = map(json.loads, done.stdout.splitlines())
    assert about["options"]["samples"] == 4
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return counted()


@pytest.mark.slow
def test_a_tiny_model(rows):
    assert [(row["task"], row["phase"]) for row in rows] == [
        ("default", "first forward passes"),
        ("default", "block"),
        *[("fisher", phase) for _ in range(2) for phase in ("rounding at each width", "gradients")],
    ]
    assert all(row["peak_bytes"] > row["start_bytes"] for row in rows)
    # What waits: of each token of both streams its hidden state, and the cosines and sines of its position.
    waiting = 2 * SAMPLES * TOKENS * (HIDDEN + 2 * HEAD_DIM)
    # The block: q, k, v, o and three biases, the MLP, two norms.
    block = 4 * HIDDEN**2 + 3 * HIDDEN + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN
    assert rows[1]["start_bytes"] == (waiting + block) * BFLOAT16


@pytest.mark.slow
@pytest.mark.exhaustive
def test_shapes_alone_count_the_same_bytes(rows):
    by_shapes = counted("--shapes-only")
    assert [row["phase"] for row in by_shapes] == [row["phase"] for row in rows]
    for row, alike in zip(rows, by_shapes):
        assert alike["peak_bytes"] == pytest.approx(row["peak_bytes"], rel=0.05), row["phase"]
