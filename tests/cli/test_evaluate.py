"""`transformers-qaig evaluate`: figures of a model's answers, as a table or as JSON."""

import json
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_qaig.data.messages import to_conversation
from transformers_qaig.report.evaluate import answer_statistics
from transformers_qaig_cli import main


def test_the_table_has_every_figure_and_every_task(
    quantized: tuple[nn.Module, Path], llava: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(quantized[1]), str(chats.parent), "--reference", str(llava)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 answers of ")
    for row in ("answers given exactly", "KL to the reference", "same first choice", "perplexity", "exactly, odd (2)"):
        assert row in said


def test_the_json_has_the_figures_of_the_library(
    quantized: tuple[nn.Module, Path], llava: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(quantized[1]), str(chats), "--reference", str(llava), "--json", "--quiet"]
    assert main(["evaluate", *arguments]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["reference"] == str(llava)
    records = [json.loads(line) for line in chats.read_text().splitlines()]
    conversations = [to_conversation(record, base_dir=chats.parent) for record in records]
    full, model = (AutoModelForImageTextToText.from_pretrained(path) for path in (llava, quantized[1]))
    expected = answer_statistics(model, AutoProcessor.from_pretrained(llava), conversations, reference=full).summary()
    assert figures["kl"] == pytest.approx(expected["kl"])
    assert figures["exact_match"] == pytest.approx(expected["exact_match"])


def test_without_a_reference_there_is_no_kl(llava: Path, chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(llava), str(chats), "--num-samples", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["questions"] == 2
    assert "kl" not in figures


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "0"], "--batch-size"),
        (["--num-samples", "0"], "--num-samples"),
        (["--device", "abacus"], "--device"),
    ],
)
def test_a_wrong_argument_is_named(
    options: list[str], said: str, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "no/such/model", str(chats), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_record_without_an_answer_is_named(llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": 3, "question": "what ?"}))
    assert main(["evaluate", str(llava), str(tmp_path / "data.jsonl")]) == 1
    assert "conversations[0]" in capsys.readouterr().err
