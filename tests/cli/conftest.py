"""Data as somebody who uses the command line has it: a file of conversations beside its pictures."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from PIL import Image
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four conversations about pictures in its folder."""
    folder = tmp_path_factory.mktemp("chats")
    lines = []
    for index in range(4):
        Image.new("RGB", (28, 28), (60 * index, 0, 0)).save(folder / f"{index}.png")
        record = {
            "image": f"{index}.png",
            "question": "how many ?",
            "answer": str(index),
            "task": ["odd", "even"][index % 2],
        }
        lines.append(json.dumps(record))
    (folder / "chats.jsonl").write_text("\n".join(lines))
    return folder / "chats.jsonl"


@pytest.fixture(autouse=True)
def _transformers_as_before() -> Iterator[None]:
    """`--quiet` and `--verbose` hold for the process."""
    verbosity, bars = transformers.logging.get_verbosity(), is_progress_bar_enabled()
    yield
    transformers.logging.set_verbosity(verbosity)
    (enable_progress_bar if bars else disable_progress_bar)()
