"""`transformers-qaig quantize`: a model is quantized, saved whole and reported, or refused before anything is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from tests.lifecycle import logits, packed
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.cli import quantize
from transformers_qaig.cli.arguments import data_source
from transformers_qaig_cli import main, parse

RTN = ["--recipe", "rtn", "--group-size", "32"]


def error_of(arguments: list[Any], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    assert main(["quantize", *map(str, arguments)]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


def test_a_model_is_saved_with_processor_and_card_and_reported(
    llava: Path, tmp_path: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    options = ["--bits", "3", "--group-size", "32", "--recipe", "fast", "--dataset", str(chats.parent)]
    options += ["--max-length", "40", "--max-pixels", "500"]
    assert main(["quantize", str(llava), str(out), *options, "--vision-bits", "8", "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert "recipe 'fast': 4 samples" in said
    assert f"Saved in {out}" in said
    assert "of weights, the processor and a model card." in said
    files = {file.name for file in out.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "processor_config.json"} <= files
    model = AutoModelForImageTextToText.from_pretrained(out)
    limits = {"max_length": 40, "max_pixels": 500}
    config = QAIGConfig(
        bits=3, group_size=32, recipe="fast", dataset=str(chats), vision_bits=8, seed=1, calibration=limits
    )
    ours = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert packed(model) == packed(ours)
    assert torch.equal(logits(model, llava), logits(ours, llava))


def test_a_model_without_a_processor_is_saved_and_told_of_so(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, out = tmp_path / "bare", tmp_path / "out"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(llava / name)
    assert main(["quantize", str(bare), str(out), *RTN]) == 0
    assert "of weights and a model card." in capsys.readouterr().out


def test_a_budget_and_a_plan_choose_widths(llava: Path, tmp_path: Path, chats: Path) -> None:
    common = ["--dataset", str(chats), "--group-size", "32", "--recipe", "rtn"]
    out = tmp_path / "out"
    assert main(["quantize", str(llava), str(out), *common, "--budget", "4.5", "--candidates", "3", "8"]) == 0
    plan = json.loads((out / "config.json").read_text())["quantization_config"]["plan"]
    assert {entry["bits"] for entry in plan.values()} <= {3, 8}
    assert main(["quantize", str(llava), str(tmp_path / "again"), *common, "--plan", str(out)]) == 0
    again = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]["plan"]
    assert again == plan


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        (["2", "4", "8"], BitBudget(uniform=4, candidates=(2, 4, 8), fuse=True)),
        (["3", "4", "8", "--cost", "fisher"], BitBudget(uniform=4, candidates=(3, 4, 8), cost="fisher", fuse=True)),
        (["2", "4", "--budget", "3.5"], BitBudget(bits=3.5, candidates=(2, 4))),
    ],
)
def test_candidates_alone_are_chosen_from_at_the_size_of_four_bits(given: list[str], budget: BitBudget) -> None:
    options = parse(["quantize", "m", "out", "--candidates", *given])
    assert quantize.configuration(options).budget == budget


@pytest.mark.parametrize("given", [["2", "3", "4"], ["4", "8"], ["8"]])
def test_candidates_alone_leave_a_choice(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(["m", tmp_path / "out", "--candidates", *given], capsys)
    assert "without --budget the size is that of 4 bits for all. Give widths below and above 4, or --budget" in said


def test_candidates_alone_hold_four_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(["m", tmp_path / "out", "--candidates", "3", "8"], capsys)
    assert "--candidates: without --budget, 4 must be one of them. Add it, or give --budget." in said


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty" in error_of(["no/such/model", tmp_path], capsys)
    assert "has no config.json" in error_of(["no/such/model", tmp_path, "--overwrite"], capsys)
    assert "is a file" in error_of(["no/such/model", tmp_path / "notes.txt"], capsys)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwriting_replaces_the_model_and_keeps_what_else_is_there(llava: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(llava), str(out), *RTN, "--bits", "4"]) == 0
    (out / "notes.txt").write_text("mine")
    (out / "model-00001-of-00002.safetensors").write_bytes(b"of an older save")
    assert main(["quantize", str(llava), str(out), *RTN, "--bits", "3", "--overwrite"]) == 0
    files = {file.name for file in out.iterdir()}
    assert "notes.txt" in files
    assert [name for name in files if "safetensors" in name] == ["model.safetensors"]
    assert "3 bits" in (out / "README.md").read_text()
    assert AutoModelForImageTextToText.from_pretrained(out).config.quantization_config.bits == 3


def test_a_model_is_not_overwritten_by_itself(llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "OUT is MODEL" in error_of([llava, llava, "--overwrite"], capsys)


@pytest.mark.parametrize("out_is", ["missing", "empty", "a model"])
def test_a_save_that_fails_leaves_the_folder_as_it_was(
    out_is: str,
    llava: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    if out_is == "empty":
        out.mkdir()
    if out_is == "a model":
        assert main(["quantize", str(llava), str(out), *RTN]) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()} if out.exists() else None

    def fail(model: nn.Module, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        (folder / "templates").mkdir()
        raise OSError("the disk is full")

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", fail)
    assert main(["quantize", str(llava), str(out), *RTN, "--overwrite"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert ({file.name: file.read_bytes() for file in out.iterdir()} if out.exists() else None) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bits", "9"], "`bits`"),
        (["--recipe", "defualt"], "Did you mean 'default'?"),
        (["--budget", "3.5Gib?"], "3.5Gib?"),
        (["--dataset", "no-such-file.jsonl"], "there is no file no-such-file.jsonl"),
        (["--dataset", "./no-such-folder"], "there is no file or folder ./no-such-folder, and no set on the Hub"),
        (["--plan", "no-such-plan.json"], "no-such-plan.json"),
        (["--private"], "--push-to-hub"),
        (["--push-to-hub", "not a name"], "--push-to-hub not a name would fail"),
        (["--push-to-hub", "me/model"], "--push-to-hub me/model would fail"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_loaded(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of(["no/such/model", tmp_path / "out", *options], capsys)


def test_a_work_dir_within_the_output_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for inside in (tmp_path / "out", tmp_path / "out" / "work"):
        assert "--work-dir must not be OUT" in error_of(["m", tmp_path / "out", "--work-dir", inside], capsys)


def test_two_ways_to_say_the_width_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["quantize", "m", str(tmp_path), "--bits", "3", "--budget", "3.2"])
    assert exit.value.code == 2


@pytest.mark.parametrize(
    ("model", "said", "status"),
    [
        ("no/such/model", "there is no folder no/such/model, and no model on the Hub can be called so", 2),
        ("./model", "there is no folder ./model", 2),
        ("/", "the folder / holds no model: it has no config.json", 2),
        (__file__, "is a file: give the folder of a model", 2),
        ("nobody/model", "there is no folder nobody/model here, and on the Hub it is not found", 1),
    ],
)
def test_a_model_that_is_not_there_is_told_with_where_it_was_sought(
    model: str, said: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of([model, tmp_path / "out"], capsys, status=status)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--exclude", "lm_hed"], "Did you mean 'lm_head'"),
        (["--budget", "1"], "cannot be met"),
        (["--budget", "9kB"], "cannot be met"),
        (["--device", "cuda:77"], "cannot be used"),
    ],
)
def test_a_value_that_does_not_fit_the_model_or_the_machine_is_a_usage_error(
    options: list[str], said: str, llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of([llava, tmp_path / "new" / "out", *options], capsys)
    assert not (tmp_path / "new").exists()


def test_a_folder_reached_through_one_that_is_not_there_is_left(llava: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    out = f"{tmp_path}/none/../mine/out"
    assert main(["quantize", str(llava), out, "--budget", "1"]) == 2
    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / "none").exists()


def test_settings_that_a_plan_overrules_are_named(
    llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["quantize", str(llava), str(tmp_path / "a"), *RTN]) == 0
    assert "without effect" not in caplog.text
    assert main(["quantize", str(llava), str(tmp_path / "b"), "--recipe", "rtn", "--plan", str(tmp_path / "a")]) == 0
    assert "without effect" not in caplog.text
    assert main(["quantize", str(llava), str(tmp_path / "c"), *RTN, "--plan", str(tmp_path / "a")]) == 0
    assert "`group_size=32` without effect beside `plan`" in caplog.text


def test_a_quantized_model_is_refused(
    quantized: tuple[nn.Module, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "quantized already (qaig)" in error_of([quantized[1], tmp_path / "out"], capsys)


def test_a_folder_stands_for_its_one_file_of_conversations(chats: Path, tmp_path: Path) -> None:
    assert data_source(str(chats.parent)) == str(chats)
    assert data_source("org/name") == "org/name"
    assert data_source(None) is None
    (tmp_path / "data.txt").write_text("")
    for path, said in ((tmp_path, "holds 0 files"), (tmp_path / "data.txt", "is not a file of conversations")):
        with pytest.raises(ValueError, match=said):
            data_source(str(path))


def test_what_was_saved_is_uploaded(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: dict[str, Any] = {}
    monkeypatch.setattr(quantize.HfApi, "whoami", lambda self: {"name": "me"})
    sends = lambda self, repo, **given: sent.update(repo=repo, **given)  # noqa: E731
    monkeypatch.setattr(LlavaForConditionalGeneration, "push_to_hub", sends)
    options = [*RTN, "--push-to-hub", "me/w4", "--private", "--token", "secret"]
    assert main(["quantize", str(llava), str(tmp_path / "out"), *options]) == 0
    assert sent == {"repo": "me/w4", "private": True, "token": "secret"}
    assert "Uploaded to me/w4" in capsys.readouterr().out


def test_progress_and_warnings_are_silent_if_asked(
    llava: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(llava), str(tmp_path / "out"), *RTN, "--quiet"]) == 0
    assert capfd.readouterr().err == ""
