"""`transformers-qaig evaluate`: figures of a model's answers, as a table or as JSON."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_qaig import QAIGConfig
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
    assert "4 conversations are too few for a standard error or an interval: give at least 30." in said
    assert "e+" not in said


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
    assert figures["perplexity"]["standard_error"] is None
    assert "too few" in figures["note"]


def test_the_json_can_be_read_whatever_a_task_is_called(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ("of\x7fa\x1b\u202e task", "other")
    records = [{"question": "how \x7f many ?", "answer": "2", "task": task} for task in tasks]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert main(["evaluate", str(llava), str(tmp_path / "data.jsonl"), "--json", "--quiet"]) == 0
    assert set(json.loads(capsys.readouterr().out)["tasks"]) == {r"of\x7fa\x1b\u202e task", "other"}


def test_a_checkpoint_of_another_method_is_measured_as_well(
    llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = tmp_path / "qaig", tmp_path / "compressed-tensors"
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn", sym=True)
    AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config).save_pretrained(own)
    assert main(["export", str(own), str(other), "--format", "compressed-tensors"]) == 0
    method = json.loads((other / "config.json").read_text())["quantization_config"]["quant_method"]
    assert method == "compressed-tensors"
    kl = []
    for reference in (own, llava):
        capsys.readouterr()
        assert main(["evaluate", str(other), str(chats), "--reference", str(reference), "--json", "--quiet"]) == 0
        kl.append(json.loads(capsys.readouterr().out)["kl"]["mean"])
    assert abs(kl[0]) < 1e-3 * kl[1]


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


def test_questions_that_changed_are_named_with_both_answers_and_picture(
    llava: Path, quantized: tuple[nn.Module, Path], chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures, picture = (tmp_path / name for name in ("changed.html", "figures.json", "tasks.png"))
    options = ["--reference", str(llava), "--html", str(page), "--output", str(figures), "--plot", str(picture)]
    columns = ["--columns", "image=image", "prompt=question", "response=answer", "task=task"]
    assert main(["evaluate", str(quantized[1]), "--dataset", str(chats), *columns, *options]) == 0
    said, found = capsys.readouterr().out, json.loads(figures.read_text())
    assert "processor: that of " in said
    assert "exact match minus the reference's" in said
    assert picture.stat().st_size > 1000
    assert sum(found["changed_counts"].values()) >= len(found["changed"])
    for change in found["changed"]:
        assert change["question"] == "how many ?"
        assert len(change["pictures"]) == 1
        assert 0 <= change["probability"] <= 1
    assert "Questions that changed" in page.read_text()
    assert figures.stat().st_size < 1 << 20


def test_a_model_differs_from_itself_in_nothing(llava: Path, chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(llava), "--dataset", str(chats), "--reference", str(llava), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl"]["mean"] == pytest.approx(0, abs=1e-9)
    assert found["changed"] == []
    assert found["paired"] == {"exact_match": [0, None, None], "perplexity": [1, None, None]}


def test_another_tokenizer_is_refused(
    llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processor = AutoProcessor.from_pretrained(llava)
    processor.tokenizer.add_tokens(["<other>"])
    for file in llava.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    processor.tokenizer.save_pretrained(tmp_path)
    assert main(["evaluate", str(llava), "--dataset", str(chats), "--reference", str(tmp_path)]) == 1
    assert "the tokenizers of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--columns", "picture=x"], "--columns takes PART=COLUMN, with a PART of"),
        (["--columns", "image"], "--columns takes PART=COLUMN, with a PART of"),
        (["--columns", "image="], "--columns takes PART=COLUMN, with a PART of"),
        (["--baseline", "other"], "--baseline compares two models' KL to a third: give --reference"),
        (["--dataset", "again.jsonl"], "give the conversations once"),
        (["--columns", "image=a", "image=b"], "--columns names image twice, a and b"),
        (["--plot", "picture.xyz"], "--plot picture.xyz: pictures end in one of"),
    ],
)
def test_arguments_that_do_not_go_together(
    options: list[str], said: str, llava: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(llava), str(chats), *options]) == 2
    assert said in capsys.readouterr().err


def test_an_adapter_is_no_model(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["evaluate", str(tmp_path), str(chats)]) == 2
    assert "holds an adapter: give the model that it is for" in capsys.readouterr().err


def test_a_model_that_predicts_nan_is_refused(
    llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    model.model.language_model.norm.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(llava).save_pretrained(tmp_path)
    for models in ([tmp_path], [llava, "--reference", tmp_path]):
        assert main(["evaluate", *map(str, models), "--dataset", str(chats), "--json"]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "questions are not finite" in said.err


def test_a_question_without_a_task_is_evaluated_beside_others(
    llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = (json.loads(line) for line in chats.read_text().splitlines())
    lines = [json.dumps(record | {"image": str(chats.parent / record["image"]), "kind": kind})
             for record, kind in ((first, None), (second, "fox"))]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    mapped = ["--columns", "image=image", "prompt=question", "response=answer", "task=kind"]
    assert main(["evaluate", str(llava), "--dataset", str(tmp_path / "x.jsonl"), *mapped, "--json", "--quiet"]) == 0
    assert "fox" in json.loads(capsys.readouterr().out)["tasks"]


def test_saved_sets_and_tables_are_read_with_mapped_columns_whatever_their_one_split_is_called(
    llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import Dataset, Image

    records = [json.loads(line) for line in chats.read_text().splitlines()]
    columns = {
        "shown": [str(chats.parent / record["image"]) for record in records],
        "q": [record["question"] for record in records],
        "a": [record["answer"] for record in records],
        "kind": [record["task"] for record in records],
    }
    saved, tables = tmp_path / "saved", tmp_path / "tables"
    made = Dataset.from_dict(columns).cast_column("shown", Image())
    made.save_to_disk(saved)
    tables.mkdir()
    made.to_parquet(tables / "test.parquet")
    mapped = ["--columns", "image=shown", "prompt=q", "response=a", "task=kind"]
    found = []
    for data in (saved, tables, tables / "test.parquet"):
        assert main(["evaluate", str(llava), "--dataset", str(data), *mapped, "--json", "--quiet"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert main(["evaluate", str(llava), "--dataset", str(chats), "--json", "--quiet"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert all(each["nll"]["mean"] == pytest.approx(expected["nll"]["mean"], rel=1e-4) for each in found)
    assert all(each["tasks"].keys() == {"odd", "even"} for each in found)


def test_figures_go_into_the_card_of_a_saved_model(
    quantized: tuple[nn.Module, Path], chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(quantized[1], folder)
    (folder / "README.md").unlink(missing_ok=True)
    arguments = ["evaluate", str(folder), str(chats), "--num-samples", "2", "--card"]
    assert main(arguments) == 2
    assert "--card adds figures to MODEL/README.md, and there is none" in capsys.readouterr().err
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert main(arguments) == 2  # before anything is evaluated
    assert f"--card: the metadata of the model card {folder / 'README.md'} cannot be read" in capsys.readouterr().err
    (folder / "README.md").write_text("# Mine")
    assert main(arguments) == 0
    (exact,) = [e for e in ModelCard.load(folder / "README.md").data.eval_results if e.metric_type == "exact_match"]
    assert exact.dataset_name == chats.name
    assert exact.metric_args["questions"] == 2
    assert "| 2 answers of " in (folder / "README.md").read_text()


@pytest.mark.slow
def test_the_example_questions_are_those_of_the_scenes_and_the_tiny_vlm_answers_them(
    tiny_vlm_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_vlm_path.parent
    monkeypatch.syspath_prepend(folder)
    written = importlib.import_module("write_questions")
    records = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert records == [written.record(seed) for seed in written.SEEDS]
    assert all((folder / record["images"][0]).is_file() for record in records)
    assert main(["evaluate", str(tiny_vlm_path), str(folder / "questions.jsonl"), "--json", "--quiet"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["questions"] == 64
    assert figures["exact_match"]["mean"] > 0.9
