"""The command line as a whole: what it imports, how it fails, what its pages say."""

import argparse
import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import transformers_qaig_cli
from tests.docs.pages import ROOT
from transformers_qaig_cli import INTERRUPTED, main, parser

COMMANDS = ("env", "plan", "quantize", "evaluate", "report", "export")
PAGE = ROOT / "docs/reference/cli.md"
LIGHT = """
import sys, transformers_qaig_cli
try:
    transformers_qaig_cli.main(["quantize", "--help"])
except SystemExit as exit:
    assert exit.code == 0
assert not {"torch", "transformers", "transformers_qaig"} & set(sys.modules)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def subparser(command: str) -> argparse.ArgumentParser:
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices[command]


def test_help_imports_nothing_heavy() -> None:
    done = run("-c", LIGHT)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["plan", "--help"], 0), (["env", "--zzz"], 2)])
def test_help_and_wrong_arguments_of_the_module_import_nothing_heavy(arguments: list[str], code: int) -> None:
    done = run("-X", "importtime", "-m", "transformers_qaig", *arguments)
    assert done.returncode == code
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "transformers_qaig_cli" in imported
    assert not {"torch", "transformers"} & imported


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*command.split(), "--help"])
    assert exit.value.code == 0
    assert f"  transformers-qaig {command}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize("arguments", [[], ["quantise"], ["quantize", "only/a/model"], ["env", "--bits", "3"]])
def test_what_is_no_command_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantize", "m", "out", "--bit", "3"], "unrecognized arguments: --bit 3; did you mean --bits?"),
        (["evaluate", "m", "data", "--zzz"], "unrecognized arguments: --zzz\n"),
        (["evaluate", "m", "data", "--ignore", "lm_head"], "unrecognized arguments: --ignore lm_head\n"),
        (["quantize", "m", "out", "--ignore", "lm_head"], "--ignore lm_head; did you mean --exclude?"),
        (["quantize", "m", "out", "--bits", "4.5"], "for 4.5 bits on average write --budget 4.5"),
        (["quantize", "m", "out", "--bits", "four"], "'four' is not a whole number\n"),
        (["quantize", "m", "out", "--fuse"], "argument --fuse: it has no effect without --budget or --candidates"),
        (["quantize", "m", "out", "--bits", "4", "--candidates", "4"], "--candidates: it has no effect beside --bits"),
        (["quantize", "m", "out", "--plan", "p", "--candidates", "4"], "--candidates: it has no effect beside --plan"),
        (["quantize", "m", "out", "--bits", "4", "--cost", "fisher"], "argument --cost: it has no effect"),
    ],
)
def test_a_wrong_argument_is_told_with_the_usage_of_its_command(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: transformers-qaig {arguments[0]} ")
    assert said in told


def test_a_misspelt_command_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["quantise", "m", "out"])
    assert "no command 'quantise'; known are env, plan, quantize, evaluate, report, export; did you mean quantize?" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("too small"), "transformers-qaig env: error: too small\n"),
     (KeyError("weight"), "transformers-qaig env: error: KeyError: 'weight'\nAdd --traceback to see where.\n")],
)  # fmt: skip
def test_an_error_is_told_without_a_traceback(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    assert main(["env"]) == 1
    assert capsys.readouterr().err == said
    assert main(["env", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupting_is_clean_and_names_where_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch, "quantize")
    assert main(["quantize", "a", "b", "--work-dir", "work"]) == INTERRUPTED
    assert capsys.readouterr().err == "\nInterrupted. The same command resumes from work.\n"


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, command: str = "env") -> None:
    def fail(options: object) -> None:
        raise error

    monkeypatch.setattr(import_module(f"transformers_qaig.cli.{command}"), "run", fail)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_lists_every_argument_with_its_default(command: str) -> None:
    section = PAGE.read_text().split(f"\n## {command}\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `([^`]+)` \|([^|]*)\|", section, re.MULTILINE))
    actions = [action for action in subparser(command)._actions if action.dest not in ("help", "traceback")]
    assert set(told) == {spelling(action) for action in actions}
    assert {spelling(action): written(action.default) for action in actions} == {k: v.strip() for k, v in told.items()}


def spelling(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar)


def written(default: Any) -> str:
    """As the page has it: `2 3 4 8`, `2.5:4.5`, nothing for a switch."""
    if default is None or default is False:
        return ""
    separator = ":" if isinstance(default, tuple) else " "
    return f"`{separator.join(map(str, default)) if isinstance(default, (list, tuple)) else default}`"


def test_the_page_shows_every_example() -> None:
    text = PAGE.read_text()
    examples = [line.strip() for command in COMMANDS for line in (subparser(command).epilog or "").splitlines()[1:]]
    assert len(examples) > 8
    assert not [example for example in examples if example not in text]


def test_recipes_named_in_the_help_exist() -> None:
    from transformers_qaig.config.recipes import RECIPES

    (recipe,) = (a for a in subparser("quantize")._actions if a.dest == "recipe")
    named = (recipe.help or "").split(", ...")[0].split(", ")
    assert set(named) <= set(RECIPES)


def test_the_console_script_is_declared() -> None:
    assert 'transformers-qaig = "transformers_qaig_cli:main"' in (ROOT / "pyproject.toml").read_text()
    assert Path(transformers_qaig_cli.__file__) == ROOT / "transformers_qaig_cli/__init__.py"


def test_env_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert "linear on cpu" in said


def _heed_interrupts() -> None:
    """A job in the background of a shell ignores interrupts, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_interrupting_a_run_shows_no_traceback(tiny_vlm_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "transformers_qaig", "quantize", str(tiny_vlm_path), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_heed_interrupts
    )
    assert process.stderr is not None
    said = b""
    while b"First forward passes" not in said:
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    said += process.communicate()[1]
    assert process.returncode == INTERRUPTED
    assert said.endswith(b"\nInterrupted.\n")
    assert b"Traceback" not in said


@pytest.mark.slow
def test_every_command_runs_as_a_process(llava: Path, chats: Path, tmp_path: Path) -> None:
    """`python -m transformers_qaig`, as a user would: without what the tests import."""
    data = ["--dataset", str(chats), "--group-size", "32", "--quiet"]
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    for arguments, said in (
        (["env"], "linear on cpu"),
        (["plan", str(llava), *data, "--budgets", "3.5:5", "--points", "3", "--output", str(plan)], "<- knee"),
        (["quantize", str(llava), str(out), *data, "--plan", str(plan)], "whole model"),
        (["evaluate", str(out), str(chats), "--reference", str(llava), "--quiet"], "KL to the reference"),
    ):
        done = run("-m", "transformers_qaig", *arguments)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert "Quantizing" not in done.stderr
    failed = run("-m", "transformers_qaig", "quantize", str(llava), str(out))
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
