"""Code on the pages runs: every block below `<!-- run -->`, on the tiny VLM with a few calibration samples."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, name

HUB_ID = "Qwen/Qwen2.5-VL-7B-Instruct"
TINY = "examples/tiny-vlm/model"
LESS = {"num_samples": "4", "recipe": '"gptq"'}
RUNNABLE = [page for page in PAGES if any(block.runs for block in blocks(page))]


def small(code: str) -> str:
    """The block with the tiny VLM in place of a large model, four calibration samples instead of 128, a fast recipe."""
    code = code.replace(HUB_ID, TINY)
    less = "".join(f"{name}={value}, " for name, value in LESS.items() if name not in code)
    return re.sub(r"\bQAIGConfig\((?=\w)", f"QAIGConfig({less}", code)


def test_pages_have_code_that_runs() -> None:
    assert len(RUNNABLE) > 6


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path) -> None:
    """In a process of its own, as a reader would run it: without what the tests import."""
    code = [small(block.text) for block in blocks(page) if block.runs]
    if any("from peft" in text for text in code):
        pytest.importorskip("peft", minversion="0.21.2")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(["import torch", "torch.manual_seed(0)", *code]), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
