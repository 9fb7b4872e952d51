"""A checkpoint four times as large as the memory that quantizing it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/host_memory.py"
FACTOR = 1.5
"""The measured peak is within it of what a dry run predicts."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("checkpoint", "recipe", "work_dir"),
    [
        ("cast", "rtn", "no"),
        pytest.param("plain", "rtn", "no", marks=pytest.mark.exhaustive),
        pytest.param("experts", "rtn", "no", marks=pytest.mark.exhaustive),
        pytest.param("experts", "rtn", "yes", marks=pytest.mark.exhaustive),
        pytest.param("plain", "gptq", "no", marks=pytest.mark.exhaustive),
    ],
)
def test_anonymous_memory_is_bounded(checkpoint: str, recipe: str, work_dir: str) -> None:
    command = [sys.executable, SCRIPT, "--checkpoints", checkpoint, "--recipes", recipe, "--work-dir", work_dir]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    row = json.loads(printed.splitlines()[-1])
    if recipe == "rtn":
        assert row["bound_bytes"] < row["checkpoint_bytes"] / 4
        assert row["peak_bytes"] <= row["bound_bytes"]
        assert row["saving_peak_bytes"] <= row["bound_bytes"]
    if work_dir == "no":
        assert row["peak_bytes"] <= FACTOR * row["predicted_bytes"]
        assert row["predicted_bytes"] <= FACTOR * row["peak_bytes"]
