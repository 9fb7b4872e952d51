"""SIGKILL at random moments, and a full disk: what is there afterwards is right, or an error says what is wrong."""

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from tests.lifecycle import FAST, logits
from tests.robustness.kills import error_with_a_full_disk, killed
from transformers_qaig import QAIGConfig
from transformers_qaig.kernels import compilation, compiler, extension
from transformers_qaig.quantizer.bit_costs import answer_costs

RUNS: dict[str, dict[str, Any]] = {
    "default": {"bits": 3},
    "rotated": {"bits": 3, "activation_bits": 8},
    "best": {"bits": 3, "recipe": {"name": "best", "steps": 5}},
    "gptq": {"bits": 3, "recipe": "gptq"},
    "awq": {"bits": 3, "recipe": "awq"},
    "rtn": {"bits": 3, "recipe": "rtn"},
    "fast": {"bits": 3, "recipe": "fast", "lm_head_bits": 4},
    "paper": {"bits": 3, "recipe": "paper"},
    "mbq": {"bits": 3, "recipe": "mbq"},
    "authors": {"bits": 3, "recipe": "authors"},
    "budget": {"budget": {"bits": 3.2, "candidates": (2, 4)}, "recipe": "gptq"},
    "budget by rounding at each width": {
        "budget": {"bits": 3.2, "candidates": (2, 4), "cost": "fisher"},
        "recipe": "gptq",
    },
}
KILLS = 3
SAVES = 15


def quantize(folder: Path, work_dir: Path | None = None, **settings: Any) -> PreTrainedModel:
    config = QAIGConfig(calibration={"work_dir": work_dir}, **FAST, **settings)
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def assert_same(model: PreTrainedModel, other: PreTrainedModel) -> None:
    assert model.config.quantization_config.plan == other.config.quantization_config.plan
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def pieces(work_dir: Path) -> list[Path]:
    """The files that a run resumes from: the report is for people."""
    return sorted(path for path in work_dir.rglob("*.*") if path.is_file() and path.name != "report.json")


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.monotonic()
    result = function()
    return result, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_killed_run_resumes_to_the_bits_of_a_whole_one(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    monkeypatch.setattr(answer_costs, "KEPT_EVERY", 1)
    rng, settings = random.Random(run), RUNS[run]
    whole, seconds = timed(lambda: quantize(llava, **settings))
    kills = 0
    for _ in range(KILLS):
        if killed(lambda: quantize(llava, tmp_path, **settings), rng.uniform(0.1, 0.9) * seconds):
            kills += 1
        elif not kills:  # the whole run was slower, and a finished folder leaves nothing to kill
            shutil.rmtree(tmp_path)
            seconds /= 2
    assert kills, "no child was at work any more"
    assert_same(quantize(llava, tmp_path, **settings), whole)
    assert not list(tmp_path.rglob(".unfinished*"))


@pytest.mark.slow
def test_a_file_that_a_killed_run_damaged_is_done_again(
    llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A power loss leaves what a kill does not: files that are cut, empty or have holes."""
    rng = random.Random(0)
    whole = quantize(llava, tmp_path / "whole", **RUNS["budget"])
    for trial in range(6):
        shutil.copytree(tmp_path / "whole", tmp_path / "work")
        file = rng.choice(pieces(tmp_path / "work"))
        raw, at = file.read_bytes(), rng.randrange(file.stat().st_size)
        file.write_bytes((raw[:at], raw[:at] + bytes(len(raw) - at), b"")[trial % 3])
        caplog.clear()
        assert_same(quantize(llava, tmp_path / "work", **RUNS["budget"]), whole)
        assert str(file) in caplog.text
        shutil.rmtree(tmp_path / "work")


@pytest.fixture(scope="module")
def saves(llava: Path) -> list[tuple[PreTrainedModel, Tensor]]:
    """Quantizations of one model, alike but for their values, and what they answer."""
    models = [quantize(llava, bits=3, recipe=recipe) for recipe in ("rtn", "gptq")]
    return [(model, logits(model, llava)) for model in models]


def loaded(folder: Path, source: Path) -> tuple[str, Tensor | None]:
    """What the model in `folder` answers, or what the error says."""
    try:
        return "", logits(AutoModelForImageTextToText.from_pretrained(folder), source)
    except (OSError, ValueError) as error:
        return str(error), None


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
@pytest.mark.parametrize("before", ["nothing", "another save"])
def test_a_killed_save_leaves_a_model_or_a_clear_error(
    saves: list[tuple[PreTrainedModel, Tensor]], llava: Path, tmp_path: Path, shard: str, before: str
) -> None:
    rng, (old, new) = random.Random(shard + before), saves
    folder = tmp_path / "saved"
    old[0].save_pretrained(tmp_path / "old", max_shard_size=shard)
    _, seconds = timed(lambda: new[0].save_pretrained(tmp_path / "timed", max_shard_size=shard))
    kills = 0
    for _ in range(SAVES):
        shutil.rmtree(folder, ignore_errors=True)
        if before != "nothing":
            shutil.copytree(tmp_path / "old", folder)
        kills += killed(lambda: new[0].save_pretrained(folder, max_shard_size=shard), rng.uniform(0, 2) * seconds)
        said, answer = loaded(folder, llava)
        assert str(folder) in said or ".safetensors" in said or answer is not None, said
        if answer is not None:
            assert torch.equal(answer, old[1]) or torch.equal(answer, new[1]), "neither the old model nor the new one"
    assert kills, "no child was at work any more"


@pytest.mark.slow
@pytest.mark.parametrize("run", ["gptq", "budget by rounding at each width"])
def test_a_disk_that_is_full_while_a_run_works_loses_nothing(llava: Path, tmp_path: Path, run: str) -> None:
    whole = quantize(llava, tmp_path / "whole", **RUNS[run])
    largest: dict[Path, int] = {}  # of each folder: a budget's costs are in one of their own
    for file in pieces(tmp_path / "whole"):
        largest[file.parent] = max(largest.get(file.parent, 0), file.stat().st_size)
    for size in (0, *(size - 1 for size in largest.values())):
        said = error_with_a_full_disk(lambda: quantize(llava, tmp_path / "work", **RUNS[run]), size)
        assert str(tmp_path / "work") in said
        assert not list((tmp_path / "work").rglob(".unfinished*"))
    assert_same(quantize(llava, tmp_path / "work", **RUNS[run]), whole)


@pytest.mark.slow
def test_a_disk_without_room_for_temporary_files_is_named(llava: Path, tmp_path: Path) -> None:
    said = error_with_a_full_disk(lambda: quantize(llava, **RUNS["rtn"]), 100)
    assert said.startswith("SettingError: `TMPDIR`: ")
    assert "has no room" in said
    assert tempfile.gettempdir() in said


@pytest.mark.slow
def test_a_disk_that_is_full_while_a_model_is_saved_is_an_error_and_leaves_no_model(
    saves: list[tuple[PreTrainedModel, Tensor]], llava: Path, tmp_path: Path
) -> None:
    said = error_with_a_full_disk(lambda: saves[0][0].save_pretrained(tmp_path), 50_000)
    assert "File too large" in said
    said, answer = loaded(tmp_path, llava)
    assert answer is None
    assert ".safetensors" in said


@pytest.mark.slow
@pytest.mark.skipif(compiler.find_compiler() is None, reason="needs a C++ compiler")
def test_a_disk_that_is_full_while_the_kernels_are_compiled_is_an_error_and_leaves_nothing(
    package: Path, tmp_path: Path
) -> None:
    for size in (0, 3_000, 12_000):
        assert error_with_a_full_disk(compilation.build, size)
        assert [path.name for path in (tmp_path / "cache").rglob("*.so*") if path.suffix != ".lock"] == []
    assert extension.load()


@pytest.mark.slow
@pytest.mark.skipif(compiler.find_compiler() is None, reason="needs a C++ compiler")
def test_a_build_that_is_killed_leaves_nothing_that_is_believed(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = random.Random(0)
    _, seconds = timed(compilation.build)
    shutil.rmtree(tmp_path / "cache")
    for _ in range(4):
        killed(compilation.build, rng.uniform(0.2, 1.1) * seconds)
    assert extension.load()
    assert extension.cpu_isa() == extension.best_cpu_isa()
    assert not list((tmp_path / "cache").rglob(".unfinished*"))
