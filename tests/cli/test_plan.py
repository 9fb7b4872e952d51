"""`transformers-qaig plan`: the front is shown and nothing is quantized."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.families import save
from transformers_qaig import QAIGConfig
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig_cli import main

OPTIONS = ["--num-samples", "2", "--group-size", "32", "--recipe", "rtn", "--points", "5"]


def test_the_front_is_printed_drawn_and_its_knee_written(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, picture = tmp_path / "plan.json", tmp_path / "front.png"
    assert (
        main(["plan", str(llava), "--budgets", "3.2:5", *OPTIONS, "--plot", str(picture), "--output", str(plan)]) == 0
    )
    text = capsys.readouterr().out
    assert text.count("<- knee") == 1
    rows = [line.split() for line in text.split("every weight")[0].splitlines()[1:]]
    sizes, losses = ([float(row[column]) for row in rows] for column in (0, 3))
    assert sizes == sorted(sizes)
    assert sizes[0] >= 3.2 or sizes[-1] <= 5
    assert losses == sorted(losses, reverse=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    parts = text.split("one bit less than ")[1]
    for part in ("language model's blocks", "vision tower and projector", "embeddings", "head"):
        assert float(parts.split(part)[1].split()[1]) > 0
    config = QAIGConfig(plan=plan, recipe="rtn")
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert model.config.quantization_config.plan == json.loads(plan.read_text())


def test_experts_are_planned_and_named_together(tmp_path: Path) -> None:
    save("qwen3_vl_moe", tmp_path / "model", torch.bfloat16)
    arguments = [str(tmp_path / "model"), "--budgets", "3.2:5", *OPTIONS, "--output", str(tmp_path / "plan.json")]
    assert main(["plan", *arguments]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    config = QAIGConfig(plan=tmp_path / "plan.json", recipe="rtn")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", quantization_config=config)
    assert any(isinstance(module, QAIGExperts) for module in model.modules())
    assert model.config.quantization_config.plan == plan


@pytest.mark.parametrize("budgets", ["1:2", "12:14"])
def test_budgets_out_of_reach_are_refused_with_the_range(
    llava: Path, budgets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(llava), "--budgets", budgets, *OPTIONS]) == 2
    assert "3.062 to 9." in capsys.readouterr().err


@pytest.mark.parametrize("budgets", ["4:3", "a:b", "0", "3:4x", "x4:x5"])
def test_a_span_that_is_none_is_a_usage_error(budgets: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "nowhere", "--budgets", budgets])
    assert "--budgets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--points", "1"], "--points"),
        (["--pick", "3"], "--output"),
        (["--pick", "-1", "--output", "plan.json"], "--pick"),
        (["--output", "no/such/folder/plan.json"], "--output"),
        (["--plot", "."], "--plot"),
        (["--plot", "picture.xyz"], "--plot picture.xyz: pictures end in one of"),
        (["--candidates", "2", "9"], "candidates"),
        (["--budgets", "3:inf"], "budget"),
        (["--recipe", "defualt"], "Did you mean 'default'?"),
    ],
)
def test_unusable_arguments_are_refused_before_the_model_is_loaded(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "no/such/model", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_pick_out_of_reach_is_refused_before_anything_is_measured(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(llava), *OPTIONS, "--pick", "1", "--output", str(tmp_path / "plan.json")]) == 2
    assert "--pick 1" in capsys.readouterr().err


def test_a_span_of_sizes_chooses_for_the_whole_file(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    arguments = ["--budgets", "1x:1.6x", "--pick", "1.5x", "--candidates", "2", "4", "--output", str(plan)]
    assert main(["plan", str(llava), *OPTIONS, *arguments]) == 0
    text = capsys.readouterr().out
    told = float(text.rpartition("x: ")[0].rpartition(", ")[2])
    assert 1.5 <= told < 1.7
    assert " x 32" in text  # some stay as they are
    paths = json.loads(plan.read_text())
    assert any("vision_tower" in path for path in paths)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=QAIGConfig(plan=plan, recipe="rtn"))
    assert model.config.quantization_config.plan == paths
    model.save_pretrained(tmp_path / "saved")
    elements = sum(
        tensor.numel() for tensor in AutoModelForImageTextToText.from_pretrained(llava).state_dict().values()
    )
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size <= 2 * elements / 1.5


@pytest.mark.parametrize("budgets", ["4x:5x", "1KB:2KB"])
def test_sizes_out_of_reach_are_refused_with_the_range(
    llava: Path, budgets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(llava), "--budgets", budgets, *OPTIONS]) == 2
    said = capsys.readouterr().err
    assert f"--budgets {budgets} cannot be met" in said
    assert "bytes (1." in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budgets", "3x:5x", "--pick", "3", "--output", "plan.json"], "both be bits, or both sizes"),
        (["--pick", "4x", "--output", "plan.json"], "both be bits, or both sizes"),
        (["--budgets", "3x:99x"], "such as '4x'"),
        (["--budgets", "99x:3x"], "such as '4x'"),
    ],
)
def test_sizes_that_are_none_are_refused_before_the_model_is_loaded(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "no/such/model", *arguments]) == 2
    assert named in capsys.readouterr().err
