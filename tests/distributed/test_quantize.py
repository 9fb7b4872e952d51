"""Several processes quantize one model: the same bits for every number of them, one writer, no hang."""

import copy
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from tests import seeds
from tests.distributed.processes import digest, in_processes, same
from tests.experts import build
from tests.families import conversations, samples
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.calibration import target_quantizer
from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.distributed import joining, ranks
from transformers_qaig.execution import exclusions, gathering, group_inputs, held_back
from transformers_qaig.quantizer.bit_costs import answer_costs

SHORT = replace(RECIPES["best"], steps=4)
RUNS: dict[str, dict[str, Any]] = {
    "fast": {"bits": 3, "recipe": "fast"},
    "best": {"bits": 2, "recipe": SHORT},
    "paper": {"bits": 3, "recipe": "paper"},
    "authors": {"bits": 3, "recipe": "authors"},
    "mbq": {"bits": 3, "recipe": "mbq"},
    "rounded inputs": {"bits": 4, "recipe": "default", "activation_bits": 8},
    "fisher": {"budget": {"bits": 3.2, "cost": "fisher"}, "recipe": "gptq"},
    "fisher_rtn": {"budget": 3.2, "recipe": "gptq"},
    "whole file": {"budget": "1.5x", "recipe": "rtn"},
    "integrated gradients": {"budget": BitBudget(bits=3.2, cost="integrated_gradients"), "recipe": "gptq"},
    "output error": {"budget": BitBudget(bits=3.2, cost="output_error"), "recipe": "gptq"},
    "whole model": {"bits": 3, "vision_bits": 4, "lm_head_bits": 4, "embedding_bits": 4, "recipe": "default"},
}

OFTEN = ["best", "fisher"]
"""What every slow run tries."""
SELDOM = [run for run in RUNS if run not in OFTEN]


def quantize(folder: Path, count: int = 7, **settings: Any) -> nn.Module:
    config = QAIGConfig(group_size=32, dataset=conversations(count), **settings)
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


@pytest.fixture(autouse=True)
def _short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that seven samples are several rows, which ranks share, and costs are kept on the way."""
    monkeypatch.setattr(group_inputs, "MAX_TOKENS", 100)
    monkeypatch.setattr(answer_costs, "KEPT_EVERY", 2)


@pytest.mark.parametrize("recipe", ["default", *(pytest.param(r, marks=pytest.mark.slow) for r in ("rtn", "gptq"))])
def test_three_processes_pack_what_one_packs(recipe: str, llava: Path) -> None:
    alone = digest(quantize(llava, bits=3, recipe=recipe))
    assert in_processes(3, lambda rank: digest(quantize(llava, bits=3, recipe=recipe))) == [alone] * 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, pytest.param(2, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("run", [*OFTEN, *(pytest.param(run, marks=pytest.mark.exhaustive) for run in SELDOM)])
def test_processes_pack_what_one_packs(run: str, number: int, llava: Path) -> None:
    alone = digest(quantize(llava, **RUNS[run]))
    assert in_processes(number, lambda rank: digest(quantize(llava, **RUNS[run]))) == [alone] * number


@pytest.mark.parametrize("way", ["killed", pytest.param("raises", marks=pytest.mark.slow)])
def test_the_others_fail_where_a_process_dies(way: str, llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = target_quantizer.install

    def die(*args: Any) -> Any:
        if os.environ["RANK"] == "1":
            if way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("no room here")
        return real(*args)

    def run(rank: int) -> Any:
        try:
            return quantize(llava, bits=3, recipe="gptq")
        finally:
            time.sleep(2 if rank == 1 else 0)  # its error is caught, and it lives on

    monkeypatch.setattr(target_quantizer, "install", die)
    monkeypatch.setattr("transformers_qaig.calibration.pipeline.install", die)
    found = in_processes(3, run, seconds=60)  # which fails where one hangs
    assert (found[1] is None) == (way == "killed")
    for rank in (0, 2):
        assert "another of the processes that quantize this model has ended or failed" in str(found[rank])


def test_a_run_resumes_with_another_number_of_processes(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"bits": 3, "recipe": "gptq", "calibration": {"work_dir": tmp_path}}
    real, quantized_so_far = target_quantizer.quantize_block, []

    def stop_at_second(block: nn.Module, path: str, *rest: Any) -> Any:
        quantized_so_far.append(path)
        if len(quantized_so_far) == 2:
            raise KeyboardInterrupt
        return real(block, path, *rest)

    def interrupted(rank: int) -> str:
        with suppress(KeyboardInterrupt):
            quantize(llava, **settings)
            return "finished"
        return "interrupted"

    def resumed(rank: int) -> tuple[str, list[bool]]:
        model = quantize(llava, **settings)
        return digest(model), [target.resumed for target in model.qaig_report.targets]

    with monkeypatch.context() as patch:
        patch.setattr(target_quantizer, "quantize_block", stop_at_second)
        assert in_processes(2, interrupted) == ["interrupted"] * 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    alone = digest(quantize(llava, bits=3, recipe="gptq"))
    assert in_processes(3, resumed) == [(alone, [True, False])] * 3
    assert resumed(0) == (alone, [True, True])


@pytest.mark.slow
def test_costs_resume_with_another_number_of_processes(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"budget": 3.2, "recipe": "rtn", "calibration": {"work_dir": tmp_path}}
    real, runs = answer_costs.fisher_losses, []

    def stop_at_third(*arguments: Any, **options: Any) -> Any:
        runs.append(1)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    def interrupted(rank: int) -> str:
        with pytest.raises(KeyboardInterrupt):
            quantize(llava, **settings)
        return "interrupted"

    def resumed(rank: int) -> tuple[str, int]:
        return digest(quantize(llava, **settings)), len(runs)

    alone = digest(quantize(llava, budget=3.2, recipe="rtn"))
    monkeypatch.setattr(answer_costs, "fisher_losses", stop_at_third)
    assert in_processes(2, interrupted) == ["interrupted"] * 2
    assert in_processes(3, resumed) == [(alone, 1)] * 3  # of seven samples four were done


def test_one_process_saves_and_the_others_wait(llava: Path, tmp_path: Path) -> None:
    def run(rank: int) -> tuple[str, int]:
        model = quantize(llava, bits=3, recipe="rtn")
        model.save_pretrained(tmp_path / "out")
        written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
        return digest(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")), written

    assert same(in_processes(2, run))


def test_saves_of_the_main_process_alone_are_no_saves_of_all(llava: Path, tmp_path: Path) -> None:
    def run(rank: int) -> bool:
        model = copy.deepcopy(quantize(llava, bits=3, recipe="rtn"))
        if rank == 0:
            model.save_pretrained(tmp_path / "alone")
        model.save_pretrained(tmp_path / "told", is_main_process=rank == 0)
        model.save_pretrained(tmp_path / "told")
        if rank == 1:
            assert model.push_to_hub("me/w3") is None  # nothing is asked of the Hub
        model.save_pretrained(tmp_path / "all")
        return (tmp_path / "all" / "model.safetensors").exists()

    assert in_processes(2, run) == [True, True]


def test_one_process_saves_where_the_group_is_gone(llava: Path, tmp_path: Path) -> None:
    def run(rank: int) -> bool:
        model = quantize(llava, bits=3, recipe="rtn")
        torch.distributed.destroy_process_group()
        model.save_pretrained(tmp_path / f"by {rank}")
        return (tmp_path / f"by {rank}").exists()

    assert in_processes(2, run) == [True, False]


def test_a_silent_rank_that_works_for_long_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SILENT", 0.2)
    monkeypatch.setattr(joining, "TIMEOUT", timedelta(seconds=2))

    def work(alive: Callable[[], None]) -> str:
        for _ in range(30):
            time.sleep(0.1)
            alive()
        return "done"

    def fail(alive: Callable[[], None]) -> str:
        raise ValueError(f"failed after {work(alive)}")

    def run(rank: int) -> tuple[str, str]:
        joined = joining.join()
        done = joined.on_main_for_long(work)
        with pytest.raises(ValueError, match="failed after done"):
            joined.on_main_for_long(fail)
        return done, joined.on_main(lambda: "next")

    assert in_processes(3, run) == [("done", "next")] * 3


def test_the_main_process_alone_prints_the_report_and_shows_bars(llava: Path, capfd: pytest.CaptureFixture) -> None:
    def run(rank: int) -> str:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        quantize(llava, bits=3, recipe="rtn")
        return sys.stderr.getvalue()

    main, other = in_processes(2, run)
    assert "Preparing packed layers" in main
    assert "Preparing packed layers" not in other
    assert "Quantized with recipe" not in other


def test_an_error_of_the_main_process_is_an_error_of_all(llava: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = in_processes(2, lambda rank: quantize(llava, bits=3, calibration={"work_dir": tmp_path / "file"}))
    assert all("`work_dir`" in str(error) for error in found)


@pytest.mark.parametrize(
    ("of_rank", "named"),
    [
        (lambda rank: {"bits": 3 + rank}, "settings"),
        (lambda rank: {"bits": 3, "calibration": {"work_dir": None if rank else "work"}}, "`work_dir`"),
        (lambda rank: {"bits": 3, "count": 3 + rank}, "calibration samples"),
    ],
)
def test_processes_that_are_given_different_things_are_told_what_differs(
    of_rank: Callable[[int], dict[str, Any]], named: str, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = in_processes(2, lambda rank: quantize(llava, recipe="gptq", **of_rank(rank)))
    assert all(f"the processes of this run were given different {named}: " in str(error) for error in found)


@pytest.mark.slow
def test_processes_that_do_not_come_are_named(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MEETING", timedelta(seconds=2))
    found = in_processes(2, lambda rank: quantize(llava, bits=3, recipe="rtn") if rank == 0 else "elsewhere")
    assert "not all processes of this run reached `from_pretrained`" in str(found[0])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["default", "rtn"])
def test_experts_are_the_same_for_every_number_of_processes(recipe: str, tmp_path: Path) -> None:
    build("qwen3_moe").save_pretrained(tmp_path)
    ids = torch.randint(3, 128, (7, 1, 40), generator=seeds.generator())
    dataset = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]

    def run(rank: int) -> str:
        config = QAIGConfig(bits=3, group_size=32, recipe=recipe, dataset=dataset)
        return digest(AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config))

    assert in_processes(3, run) == [run(0)] * 3


@pytest.mark.slow
def test_a_sample_that_is_not_finite_is_left_out_by_all(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each kind: where a group reads, and in the block's output."""
    real, enter = held_back.first_tensor, gathering.enter

    def output(found: Any) -> torch.Tensor:
        tensor = real(found)
        return torch.full_like(tensor, torch.nan) if tensor.shape[1] == lengths[4] else tensor

    def entrance(block: nn.Module, group: Any, call: Any) -> Any:
        x, args, kwargs = enter(block, group, call)
        return (torch.full_like(x, torch.nan) if x.shape[1] == lengths[6] else x), args, kwargs

    lengths = [inputs["input_ids"].shape[1] for inputs in samples(AutoProcessor.from_pretrained(llava), 24)]
    monkeypatch.setattr(exclusions, "MOST", 0.5)
    monkeypatch.setattr(held_back, "first_tensor", output)
    monkeypatch.setattr(gathering, "enter", entrance)

    def run(rank: int) -> tuple[str, dict[int, str]]:
        model = quantize(llava, 24, bits=3, recipe="default")
        return digest(model), model.qaig_report.left_out

    alone = run(0)
    assert {4, 6} <= set(alone[1])
    assert in_processes(3, run) == [alone] * 3
