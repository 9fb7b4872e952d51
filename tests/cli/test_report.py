"""`transformers-qaig report`: a page of a saved model, and of a run that goes on; `quantize --report --live`."""

import json
from pathlib import Path

import pytest
from torch import nn

from tests.report.reports import record
from transformers_qaig_cli import main


def test_a_saved_model_becomes_a_page(
    quantized: tuple[nn.Module, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, data = tmp_path / "page.html", tmp_path / "data.json"
    assert main(["report", str(quantized[1]), "--html", str(page), "--json", str(data)]) == 0
    assert "finished" in capsys.readouterr().out
    assert "Error by block" in page.read_text()
    assert main(["report", str(quantized[1])]) == 2
    assert "nothing to write: give --html" in capsys.readouterr().err


def test_a_run_writes_its_page_its_data_and_a_live_page(
    llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work, live = tmp_path / "out", tmp_path / "work", tmp_path / "live.html"
    options = ["--bits", "3", "--group-size", "32", "--recipe", "fast", "--dataset", str(chats.parent)]
    options += ["--report", "--live", str(live), "--work-dir", str(work), "--quiet"]
    assert main(["quantize", str(llava), str(out), *options]) == 0
    page = (out / "qaig_report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "many" in page
    assert "many" not in (out / "qaig_report.json").read_text()
    assert "finished" in live.read_text()
    assert main(["report", str(work), "--html", str(tmp_path / "again.html")]) == 0
    assert "data:image/jpeg;base64," in (tmp_path / "again.html").read_text()
    capsys.readouterr()


def test_a_live_page_that_cannot_be_written_is_refused_at_once(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(llava), str(tmp_path / "out"), "--live", str(tmp_path / "no" / "x.html")]) == 2
    assert "`live_page` must be a file in a folder that is there" in capsys.readouterr().err


def test_a_report_of_anybody_gives_the_terminal_no_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, page = tmp_path / "model", tmp_path / "page.html"
    folder.mkdir()
    (folder / "qaig_report.json").write_text(json.dumps(record(2, name="\x1b]0;title\x07\ud800")))
    assert main(["report", str(folder), "--html", str(page), "--png", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(r"\x1b]0;title\x07\ud800: ")
    assert r"\x1b]0;title\x07\ud800" in page.read_text()


def test_pictures_go_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "qaig_report.json").write_text(json.dumps(record(2)))
    assert main(["report", str(tmp_path), "--png", str(tmp_path / "qaig_report.json")]) == 2
    assert "--png must be a folder, got the file" in capsys.readouterr().err


@pytest.mark.parametrize("traceback", [[], ["--traceback"]])
def test_an_error_that_quotes_a_file_gives_the_terminal_no_orders(
    traceback: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"quant_method": "\x1b[2Jgone"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert main(["report", str(tmp_path / "."), "--html", str(tmp_path / "page.html"), *traceback]) == 1
    (file := tmp_path / "\x1b[2J").mkdir()
    assert main(["report", str(file), "--html", str(tmp_path / "page.html"), *traceback]) == 1
    said = capsys.readouterr().err
    assert said.count(r"\x1b[2J") >= 2
    assert "\x1b" not in said
