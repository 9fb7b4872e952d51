"""llama.cpp runs an exported model with its tower, and answers as our model does: `pip install xllamacpp`."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import transformers_qaig
from tests.integrations.vllm import models
from tests.integrations.vllm.answers import Answers, questions
from tests.integrations.vllm.engine import data_url

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("xllamacpp"), reason="there is no llama.cpp: `pip install xllamacpp`"),
    pytest.mark.skipif(not find_spec("gguf"), reason="the export needs `pip install gguf`"),
]
COUNT = 24
WAYS: dict[str, dict[str, Any]] = {
    "Q4_1": {"bits": 4},
    "Q4_0": {"bits": 4, "sym": True},
    "mixed": {
        "bits": 4,
        "vision_bits": 4,
        "overrides": {"*.k_proj": 3, "*.v_proj": {"bits": 8, "sym": True}, "*.layers.2.*": 6},
    },
}


def with_words(folder: Path) -> None:
    """Gives the tiny VLM a tokenizer of a kind that llama.cpp has, which makes the same tokens of its words.

    Every word becomes a token that is found in a text before the text is split. Spaces are no tokens, and drop out.
    llama.cpp asks for a merge: it makes one of three rows that are of no word.
    """
    file = folder / "tokenizer.json"
    old = json.loads(file.read_text())
    vocab = old["model"]["vocab"]
    spare = sorted(vocab, key=vocab.get)[-3:]
    special = {token["content"] for token in old["added_tokens"] if token["special"]}
    words = [
        {
            "id": number, "content": word, "special": word in special, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False,
        }
        for word, number in vocab.items() if word not in spare
    ]  # fmt: skip
    vocab.update(zip(("q", "z", "qz"), map(vocab.pop, spare)))
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": [["q", "z"]]}
    made = {"version": "1.0", "added_tokens": words, "pre_tokenizer": step, "decoder": step, "model": model}
    file.write_text(json.dumps(made))


@pytest.mark.parametrize("way", WAYS)
def test_llama_cpp_answers_as_our_model_does(way: str, tiny_vlm_path: Path, tmp_path: Path) -> None:
    folder = models.make_quantized(tiny_vlm_path, tmp_path / "ours", **WAYS[way])
    ours, asked = Answers(folder, torch.float32), questions(COUNT)
    with_words(folder)
    transformers_qaig.export(folder, tmp_path / "out", format="gguf")
    sent = json.dumps([{"picture": data_url(picture), "text": text} for picture, text in asked])
    command = [sys.executable, str(Path(__file__).with_name("llama_cpp.py")), str(tmp_path / "out")]
    done = subprocess.run(command, input=sent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    wrong = [ours.disagreement(*question, theirs) for question, theirs in zip(asked, answers)]
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert len(set(map(tuple, answers))) >= COUNT // 3  # they are about the pictures
