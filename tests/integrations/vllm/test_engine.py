"""A real vLLM engine on the CPU serves folders as they were saved, and answers as Transformers does.

`make vllm` runs all of it, `make vllm-short` the cases called short. Without `.venv-vllm` there is nothing to run.
"""

from pathlib import Path

import pytest
import torch

import transformers_qaig
from tests.integrations.vllm import engine, models
from tests.integrations.vllm.answers import Answers, questions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not engine.PYTHON, reason="QAIG_VLLM_PYTHON names no Python with vLLM: `make vllm` makes one"),
]
SHORT = ("mixed", "whole")
COUNT = 24 if engine.IS_SHORT else 100


def check(
    folder: Path, tmp_path: Path, dtype: torch.dtype, distinct: int = COUNT // 8, served: Path | None = None
) -> None:
    asked = questions(COUNT)
    with engine.served(served or folder, tmp_path / "log", dtype=str(dtype).removeprefix("torch.")) as address:
        answers = engine.ask_all(address, asked)
    ours = Answers(folder, dtype)
    wrong = [ours.disagreement(*question, theirs) for question, theirs in zip(asked, answers)]
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert len(set(map(tuple, answers))) >= distinct, answers  # they are about the pictures


@pytest.mark.parametrize("way", SHORT if engine.IS_SHORT else models.WAYS)
def test_the_engine_answers_as_transformers_does(way: str, tiny_vlm_path: Path, tmp_path: Path) -> None:
    folder = models.make_quantized(tiny_vlm_path, tmp_path / way, **models.WAYS[way])
    check(folder, tmp_path, torch.float32)


@pytest.mark.skipif(engine.IS_SHORT, reason="the long form: `make vllm`")
def test_the_engine_answers_as_transformers_does_in_bfloat16(tiny_vlm_path: Path, tmp_path: Path) -> None:
    folder = models.make_quantized(tiny_vlm_path, tmp_path / "w4", **models.WAYS["w4"])
    check(folder, tmp_path, torch.bfloat16)


@pytest.mark.skipif(engine.IS_SHORT, reason="the long form: `make vllm`")
def test_full_precision_shows_what_the_engine_itself_changes(tiny_vlm_path: Path, tmp_path: Path) -> None:
    folder = models.make_full(tiny_vlm_path, tmp_path / "full")
    check(folder, tmp_path, torch.float32)


@pytest.mark.skipif(engine.IS_SHORT, reason="the long form: `make vllm`")
@pytest.mark.parametrize("name", models.FAMILIES)
def test_other_families_with_tower_and_projector_packed(name: str, tmp_path: Path) -> None:
    """Random weights: what is compared is every token, not whether it answers the question."""
    full = models.make_family(name, tmp_path / "full")
    folder = models.make_quantized(full, tmp_path / name, **models.FAMILIES[name])
    check(folder, tmp_path, torch.float32, distinct=2)


@pytest.mark.parametrize("way", ("mixed",) if engine.IS_SHORT else models.EXPERTS)
def test_experts_of_several_widths(way: str, tmp_path: Path) -> None:
    folder = models.make_quantized(models.WITH_EXPERTS, tmp_path / way, **models.EXPERTS[way])
    check(folder, tmp_path, torch.float32)


@pytest.mark.skipif(engine.IS_SHORT, reason="the long form: `make vllm`")
@pytest.mark.parametrize("way", models.EXPORTED)
def test_our_kernels_run_exported_files(
    way: str, tiny_vlm_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reads compressed-tensors itself, and has no CPU kernel for 2, 3 and 8 bits; its own for 4 needs AVX-512."""
    folder = models.make_quantized(tiny_vlm_path, tmp_path / "ours", **models.EXPORTED[way])
    transformers_qaig.export(folder, tmp_path / "out", format="compressed-tensors", engine="vllm")
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "CPUWNA16LinearKernel")
    check(folder, tmp_path, torch.float32, served=tmp_path / "out")
