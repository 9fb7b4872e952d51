"""The GPU benchmarks' logic, without a GPU: what they compute from times, and whole dry runs on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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
    rates = gpu_gemm.rates(row, 2, 4000, 4000, 4000.0)
    assert rates["gb_per_s"] == pytest.approx(2000)
    assert rates["bandwidth_fraction"] == pytest.approx(0.5)
    assert rates["times_floor"] == pytest.approx(2)
    assert rates["tflop_per_s"] == pytest.approx(6.4)
    small = gpu_gemm.rates({"us": 6.0, "weight_bytes": 1000}, 1, 10, 10, 4000.0)
    assert small["times_floor"] == pytest.approx(2)


def test_ratios_stay_within_a_class(gpu_gemm):
    def row(op, activations, **figures):
        return {"op": op, "activations": activations, **figures}

    rows = [
        row("qaig", "a16", us=10.0),
        row("qaig gemv", "a16", us=9.0),
        row("qaig a8", "a8", us=5.0),
        row("dense", "bf16", us=25.0),
        row("packed", "a16", us=20.0),
        row("int8", "a8", us=6.0),
        row("float8", "a8", reason="not here"),
    ]
    ours, _, rounded, dense, *_ = rows
    assert gpu_gemm.ratios(ours, rows) == {"speed_over_bf16": 2.5, "best_peer": "packed", "speed_over_best_peer": 2.0}
    assert gpu_gemm.ratios(rounded, rows) == {"speed_over_bf16": 5.0, "best_peer": "int8", "speed_over_best_peer": 1.2}
    assert gpu_gemm.ratios(dense, rows) == {"speed_over_bf16": 1.0}
    assert gpu_gemm.ratios(ours, rows[:3]) == {}


def test_the_thresholds(gpu_gemm):
    def figures(**kernels):
        return {f"qaig {kernel}": {m: {"us": us} for m, us in by_m.items()} for kernel, by_m in kernels.items()}

    gemv, gemm = {1: 1, 16: 4, 32: 8, 64: 16}, {1: 3, 16: 5, 32: 5, 64: 8}
    dequantize = {1: 6, 16: 6, 32: 6, 64: 7}
    assert (
        gpu_gemm.crossing(figures(gemv=gemv, gemm_f16=gemm, dequantize=dequantize))
        == "The fastest up to: gemv M=16, gemm_f16 M=32, dequantize M=64."
    )
    assert gpu_gemm.crossing(figures(gemv={1: 1}, dequantize={1: 2})) == "The fastest up to: gemv M=1, dequantize M=0."
    assert "not measured" in gpu_gemm.crossing(figures(gemv={1: 1}, dequantize={2: 2}))
    assert "not measured" in gpu_gemm.crossing({})
    rounded = figures(**{"a8 gemv": gemv, "a8 gemm_i8": gemm, "a8 dequantize": dequantize})
    assert (
        gpu_gemm.crossing(rounded, "qaig a8", "gemm_i8")
        == "The fastest up to: gemv M=16, gemm_i8 M=32, dequantize M=64."
    )
    assert "not measured" in gpu_gemm.crossing(rounded)


@pytest.mark.slow
def test_gemm_dry_run():
    (about, *rows), table = dry_run("gpu_gemm.py")
    assert about["gpu"] is None
    assert "dry run" in about["note"]
    assert "dry run" in table
    timed = [row for row in rows if "us" in row]
    measured = {row["op"]: row["activations"] for row in timed}
    ours = {"qaig", "qaig gemv", "qaig gemm_f16", "qaig dequantize"}
    rounded = {"qaig a8", "qaig a8 gemv", "qaig a8 gemm_i8", "qaig a8 dequantize", "torch _int_mm int8"}
    assert measured.keys() >= ours | rounded | {"torch bf16 F.linear"}
    assert {op for op, activations in measured.items() if activations == "a8"} == rounded
    assert not any("wrong result" in row.get("reason", "") for row in rows)
    mixed = [row for row in timed if row["bits"] == "4, 3"]
    assert {(row["op"], row["m"], row["n"]) for row in mixed} == {
        (op, 1, 256) for op in ("qaig together", "qaig one by one", "torch bf16 F.linear")
    }
    assert all(row["speed_over_bf16"] > 0 for row in mixed)
    assert "K=256, N=256, 4, 3 bits" in table


@pytest.mark.slow
@pytest.mark.exhaustive
def test_generate_dry_run():
    (about, *rows), table = dry_run("gpu_generate.py", "--variants", "bf16", "w3a16")
    assert "dry run" in about["note"]
    assert [row["part"] for row in rows] == ["generate", "generate", "calibrate", "calibrate"]
    assert not any("failed" in key for row in rows for key in row)
    assert "| w3a16 |" in table


def gpu_script(tmp_path, steps: str) -> str:
    """What tools/gpu.sh says where Python has no packages at all."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "STEPS": steps, "RESULTS": str(tmp_path)}
    script = BENCHMARKS.parent / "tools" / "gpu.sh"
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    return done.stderr


def test_the_script_says_what_is_missing(tmp_path):
    for steps, needed in (("gemm", False), ("check gemm", False), ("gemm tests", True), ("generate", True), ("", True)):
        said = gpu_script(tmp_path, steps)
        assert "pip install torch transformers" in said
        assert ("greenlet" in said) == needed
    assert "STEPS has jemm; there are: env check" in gpu_script(tmp_path, "jemm")


def test_products_are_measured_without_greenlet():
    imports = "import sys; sys.modules['greenlet'] = None; import gpu_gemm, transformers_qaig.kernels.env"
    path = os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS.parent)))
    subprocess.run([sys.executable, "-c", imports], check=True, env=os.environ | {"PYTHONPATH": path})
