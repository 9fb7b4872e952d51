"""`optimum-cli qaig`: what calls the hook needs no optimum; the rest is skipped where it is not installed."""

import importlib
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

import transformers_qaig_autoload as autoload
from transformers_qaig_cli import COMMANDS, parse

ROOT = Path(__file__).parents[2]
HOOK = (ROOT / "transformers_qaig_optimum.pth").read_text()


@pytest.mark.parametrize(
    ("program", "is_optimum"),
    [
        (["python3", "/usr/bin/optimum-cli", "qaig"], True),
        (["C:\\venv\\Scripts\\optimum-cli.exe", "qaig"], True),
        (["/srv/optimum-cli/bin/python3", "train.py", "--output", "optimum-cli"], False),
        (["python3"], False),
    ],
)
def test_only_optimums_program_calls_the_hook(
    program: list[str], is_optimum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = Mock()
    monkeypatch.setattr(sys, "orig_argv", program)
    monkeypatch.setattr(autoload, "install_optimum_command", called)
    assert HOOK.startswith("import ")  # of a .pth file Python runs such lines only
    assert HOOK.count("\n") == 1
    exec(HOOK, {})
    assert called.called == is_optimum


@pytest.fixture
def optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimum's command line, imported anew with the hook before it."""
    for name in ("optimum.commands.optimum_cli", "transformers_qaig_cli.optimum_command"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    autoload.install_optimum_command()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    optimum_cli = pytest.importorskip("optimum.commands.optimum_cli")
    monkeypatch.setattr(sys, "argv", ["optimum-cli", *arguments])
    with pytest.raises(SystemExit) as stopped:
        optimum_cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.usefixtures("optimum")
def test_optimum_lists_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "qaig", "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: optimum-cli qaig")
    assert all(f"\n    {name} " in told for name in COMMANDS)


@pytest.mark.usefixtures("optimum")
def test_arguments_are_those_of_the_packages_own_program(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["quantize", "MODEL", "out", "--budget", "3.2", "--exclude", "a", "b", "--recipe", "rtn", "--dry-run"]
    taken: list[dict] = []
    pytest.importorskip("optimum.commands.optimum_cli")
    command = importlib.import_module("transformers_qaig_cli.optimum_command")
    monkeypatch.setattr(command, "run", lambda options: taken.append(vars(options)) or 7)
    assert call(monkeypatch, "qaig", *given) == 7
    ours = vars(parse(given))
    assert {name: taken[0][name] for name in ours if name != "parser"} == {
        name: value for name, value in ours.items() if name != "parser"
    }


@pytest.mark.usefixtures("optimum")
def test_errors_name_optimums_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "qaig", "quantize", "MODEL") == 2
    assert "optimum-cli qaig quantize: error: the following arguments are required: OUT" in capsys.readouterr().err
    assert call(monkeypatch, "qaig", "report", "no/such/folder/here") == 2
    assert "optimum-cli qaig report: error: nothing to write" in capsys.readouterr().err
