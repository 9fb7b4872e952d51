"""`examples/own_dataset.py` runs: fewer conversations than a user takes."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from tests.docs.pages import ROOT


@pytest.mark.slow
def test_the_example_writes_conversations_and_calibrates_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = import_module("own_dataset")
    monkeypatch.setattr(example, "SAMPLES", 4)
    monkeypatch.setattr(example, "OUT", tmp_path)
    example.main()
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [sorted(record) for record in records] == [["answer", "picture", "question"]] * 4
    assert "4 samples" in capsys.readouterr().out
    assert (tmp_path / "model" / "config.json").is_file()
