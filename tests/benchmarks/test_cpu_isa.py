"""A row about speed on the CPU says which instruction set was in use."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from transformers_qaig.kernels import extension

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Printed = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(extension, "cpu_isa", lambda: "avx2")
    return importlib.import_module


@pytest.fixture
def rows_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Runs a script's `main`, and returns its rows without the one that says where they come from."""

    def rows_of(module: ModuleType, *arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr("sys.argv", ["script.py", *arguments])
        monkeypatch.setattr(module.torch, "set_num_threads", lambda number: None)
        module.main()
        provenance, *rows = map(json.loads, capsys.readouterr().out.splitlines())
        assert "command" in provenance
        return rows

    return rows_of


def test_rows_of_calibration_cost_say_the_instruction_set(script: Any, rows_of: Printed) -> None:
    rows = rows_of(script("calibration_cost"), "--widths", "128", "--rows", "8", "--tokens", "16")
    assert [(row["step"], row["cpu_isa"]) for row in rows] == [
        (step, "avx2") for step in ("moments", "factor", "gptq", "scales")
    ]


def test_rows_of_kv_cache_speed_say_the_instruction_set(
    script: Any, rows_of: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("kv_cache_speed")
    model = SimpleNamespace(model=SimpleNamespace(language_model=None))
    monkeypatch.setattr(module, "build", lambda *_: model)
    monkeypatch.setattr(module, "seconds_a_token", lambda *_: (2.0, 1.0))
    rows = rows_of(module, "--caches", "none", "--context", "8")
    assert [(row["cache"], row["cpu_isa"], row["cpu_seconds"]) for row in rows] == [("none", "avx2", 1.0)]


def test_rows_of_several_processes_say_the_instruction_set(
    script: Any, rows_of: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("several_processes")
    monkeypatch.setattr(module, "make_model", lambda folder: None)
    monkeypatch.setattr(module, "launched", lambda number, arguments: {"seconds": 1.0})
    rows = rows_of(module, "--recipes", "gptq")
    assert [(row["processes"], row["cpu_isa"], row["seconds"]) for row in rows] == [(1, "avx2", 1.0), (2, "avx2", 1.0)]
