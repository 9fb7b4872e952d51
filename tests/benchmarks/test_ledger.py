"""benchmarks/ledger.py: one row a key, and every row says where it comes from."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ledger(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ledger

    return ledger


def run(**facts):
    return {"date": "2026-01-01", "commit": "abc", "command": "python x.py", "machine": "a CPU", **facts}


def test_a_new_row_replaces_the_one_of_its_key(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    old = [{"part": "generate", "variant": "bf16", "us": 3}, {"part": "generate", "variant": "w4", "us": 2}]
    assert ledger.add("gpu_generate", [run(), *old]) == 0
    assert ledger.add("gpu_generate", [run(commit="def"), {"part": "generate", "variant": "w4", "us": 1}]) == 1
    rows = list(ledger.rows_of("gpu_generate"))
    assert [(row["variant"], row["us"], row["commit"]) for row in rows] == [("bf16", 3, "abc"), ("w4", 1, "def")]


def test_a_run_without_rows_is_forgotten(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    row = {"part": "generate", "variant": "w4", "us": 1}
    ledger.add("gpu_generate", [run(), row])
    ledger.add("gpu_generate", [run(commit="def"), row])
    kept = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [(one["run"], one["commit"]) for one in kept] == [("gpu_generate-2", "def")]


def test_rows_must_say_where_they_come_from(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="date, commit, command and machine"):
        ledger.add("gpu_generate", [{"part": "generate", "variant": "w4", "us": 1}])


def test_every_row_says_where_it_comes_from(ledger):
    names = [path.stem for path in ledger.RESULTS.glob("*.jsonl") if path.stem != "runs"]
    assert set(ledger.KEYS) - set(names) <= {"serving"}, "of what has been run; serving.py has not"
    for name in names:
        for row in ledger.rows_of(name):
            assert all(row[fact] for fact in ("date", "commit", "command", "machine")), (name, row)


def test_keys_are_unique(ledger):
    for name in ledger.KEYS:
        keys = [ledger._key(name, row) for row in ledger.rows_of(name)]
        assert len(keys) == len(set(keys)), name


@pytest.mark.parametrize("name", ["cpu_gemm", "experts", "generate", "grad_input", "lora", "lora_loss", "serving"])
def test_a_row_of_another_instruction_set_replaces_none(ledger, tmp_path, monkeypatch, name):
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    rows = [{field: field for field in ledger.KEYS[name]} | {"cpu_isa": isa} for isa in ("avx512", "amx")]
    assert ledger.add(name, [run(), *rows]) == 0
    assert [row["cpu_isa"] for row in ledger.rows_of(name)] == ["avx512", "amx"]


def test_rows_say_the_instruction_set_that_their_key_asks_for(ledger):
    for name in [name for name, key in ledger.KEYS.items() if "cpu_isa" in key]:
        missing = [row for row in ledger.rows_of(name) if not row.get("cpu_isa")]
        assert not missing, (name, missing[0])
