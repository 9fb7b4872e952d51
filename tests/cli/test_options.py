"""Options of several commands: how their text is read."""

from pathlib import Path
from typing import Any

import pytest

from transformers_qaig.cli.arguments import quantization_config
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig_cli import main, parse


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("rtn", "rtn"),
        ("best,steps=20,end_to_end=false", {"name": "best", "steps": 20, "end_to_end": False}),
        ("token_weights=qig,asymmetric=0.5", {"token_weights": "qig", "asymmetric": 0.5}),
        ("default,end_to_end=True", {"name": "default", "end_to_end": True}),
    ],
)
def test_changes_of_a_recipe_follow_its_name(text: str, read: Any) -> None:
    options = parse(["quantize", "MODEL", "out", "--bits", "3", "--recipe", text])
    assert options.recipe == read
    assert quantization_config(options).recipe == recipe_of(read)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("best,steps", "'steps' is no change of a recipe: write NAME,ATTRIBUTE=VALUE"),
        ("best,", "'' is no change of a recipe"),
        ("best,steps=", "'steps=' is no change"),
        ("best,steps=2,steps=3", "'steps' is there twice"),
    ],
)
def test_text_that_is_no_change_is_named(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["quantize", "MODEL", "out", "--recipe", text])
    assert f"argument --recipe: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("best,stepz=20", "Did you mean 'steps'?"),
        ("best,steps=true", "`steps` must be a positive integer, got True"),
        ("defualt,steps=20", "Did you mean 'default'?"),
    ],
)
def test_a_change_that_no_recipe_takes_is_named(
    text: str, said: str, llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(llava), str(tmp_path / "out"), "--recipe", text, "--dry-run"]) == 2
    assert said in capsys.readouterr().err
