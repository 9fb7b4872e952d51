"""Calibration on an accelerator, with every tensor where a GPU would want it. Nothing here needs a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.accelerator_cases import CASES, OTHERS

pytestmark = pytest.mark.slow

SAME = 3.0
"""Other roundings of float32 tip choices in models this small: weights changed by 1e-6 moved errors by up to 2.4."""


def found(*arguments: str) -> dict[str, dict[str, Any]]:
    """What a process of its own found: the accelerator would be everybody's default for the rest of this one."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.integration.accelerator_quantize", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    return found(*CASES)


@pytest.fixture(scope="module")
def other_rows() -> dict[str, dict[str, Any]]:
    return found(*OTHERS)


@pytest.mark.parametrize("case", CASES)
def test_as_on_the_cpu(case, rows):
    compare(rows[case])


def test_moments_of_bfloat16_are_sums_of_exact_products_there(rows):
    there, here = rows["bfloat16"]["mtia"], rows["bfloat16"]["cpu"]
    assert there["multiplied"] == ["torch.bfloat16"]
    assert here["multiplied"] == ["torch.float32"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", OTHERS)
def test_others_as_on_the_cpu(case, other_rows):
    compare(other_rows[case])


def compare(row: dict[str, Any]) -> None:
    assert "failure" not in row, row["failure"]
    there, here = row["mtia"], row["cpu"]
    assert there["devices"] == here["devices"] == ["cpu"]  # the model comes back from where it was calibrated
    assert there["bits"] == pytest.approx(here["bits"], rel=0.01)
    assert there["errors"].keys() == here["errors"].keys()
    for path, error in here["errors"].items():
        assert error / SAME < there["errors"][path] < error * SAME, path


def test_misplaced_tensors_are_refused(rows):
    assert rows["a tensor elsewhere"]["refused"].startswith("Expected all tensors to be on")


def test_bytes_are_counted(rows):
    assert rows["bytes"] == {"case": "bytes", "made": 4000, "resized": 8000, "freed": 0, "peak": 12000, "reset": 0}


def test_few_copies_of_second_moments(rows):
    row = rows["copies"]
    assert row["factor"] < 2.3  # a factor and what it is made from
    assert row["gptq"] < 10 * (4 + 4 + 1 + 2) / 4 + 3  # of ten grids: weights, errors, codes, half a product of errors
    assert row["left"] == 0  # nothing waits for the garbage collector


def test_forwards_that_wait_hold_nothing_on_the_accelerator(rows):
    assert rows["waiting"] == {"case": "waiting", "visiting": True, "held": 0, "devices": ["cpu"], "in place": True}


def test_placed(rows):
    row = rows["placed"]
    assert row["devices"] == ["mtia:0"]
    assert all(difference < 1e-4 for difference in row["differences"].values()), row["differences"]


def test_finished_blocks_are_taken_up_there(rows):
    assert rows["resumed"] == {"case": "resumed", "devices": ["cpu"], "same": True, "resumed": [True, True]}


def test_as_the_default_device(rows):
    there, elsewhere = rows["by default"]["mtia"], rows["by default"]["cpu"]
    assert there["devices"] == ["mtia:0"]  # as for any model that is loaded with such a default
    assert elsewhere["devices"] == ["cpu"]
    assert there["bits"] == elsewhere["bits"]
    assert there["errors"] == elsewhere["errors"]
