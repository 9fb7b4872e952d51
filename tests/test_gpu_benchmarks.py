"""The GPU benchmarks' logic, without a GPU: what they compute from times, and whole dry runs on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu_gemm(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_gemm

    return gpu_gemm


def dry_run(script: str, *arguments: str) -> tuple[list[dict], str]:
    command = [sys.executable, str(BENCHMARKS / script), "--dry-run", *arguments]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_rates(gpu_gemm):
    row = {"us": 10.0, "weight_bytes": 20_000_000}
    rates = gpu_gemm.rates(row, 2, 4000, 4000, 4000.0, [25.0])
    assert rates["gb_per_s"] == pytest.approx(2000)
    assert rates["bandwidth_fraction"] == pytest.approx(0.5)
    assert rates["times_floor"] == pytest.approx(2)
    assert rates["tflop_per_s"] == pytest.approx(6.4)
    assert rates["speed_over_bf16"] == pytest.approx(2.5)
    small = gpu_gemm.rates({"us": 6.0, "weight_bytes": 1000}, 1, 10, 10, 4000.0, [])
    assert small["times_floor"] == pytest.approx(2)
    assert "speed_over_bf16" not in small


def test_the_thresholds(gpu_gemm):
    def figures(**ways):
        return {f"qaig {way}": {m: {"us": us} for m, us in by_m.items()} for way, by_m in ways.items()}

    decode, fused = {1: 1, 16: 4, 32: 8, 64: 16}, {1: 3, 16: 5, 32: 5, 64: 8}
    unpack = {1: 6, 16: 6, 32: 6, 64: 7}
    assert (
        gpu_gemm.crossing(figures(decode=decode, fused=fused, unpack=unpack))
        == "The fastest up to: decode M=16, fused M=32, unpack M=64."
    )
    assert gpu_gemm.crossing(figures(decode={1: 1}, unpack={1: 2})) == "The fastest up to: decode M=1, unpack M=0."
    assert "not measured" in gpu_gemm.crossing(figures(decode={1: 1}, unpack={2: 2}))
    assert "not measured" in gpu_gemm.crossing({})


@pytest.mark.slow
def test_gemm_dry_run():
    (about, *rows), table = dry_run("gpu_gemm.py")
    assert about["gpu"] is None
    assert "dry run" in about["note"]
    assert "dry run" in table
    timed = [row for row in rows if "us" in row]
    assert {row["op"] for row in timed} >= {"qaig", "qaig decode", "qaig fused", "qaig unpack", "torch bf16 F.linear"}
    assert not any("wrong result" in row.get("reason", "") for row in rows)


@pytest.mark.slow
def test_generate_dry_run():
    (about, *rows), table = dry_run("gpu_generate.py", "--variants", "bf16", "w3a16")
    assert "dry run" in about["note"]
    assert [row["part"] for row in rows] == ["generate", "generate", "calibrate", "calibrate"]
    assert not any("failed" in key for row in rows for key in row)
    assert "| w3a16 |" in table
