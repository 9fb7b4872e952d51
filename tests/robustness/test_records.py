"""Records made of anything: each becomes a sample that holds its answer, or an error that names it."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families import build
from transformers_qaig.data.columns import COLUMN_NAMES
from transformers_qaig.data.model_inputs import ModelInputs
from transformers_qaig.data.samples import load_samples

TEXT_MODEL = ModelInputs(has_images=False)

ANSWER = "the brown fox"
KEYS = [name for names in COLUMN_NAMES.values() for name in names[:4]] + ["chosen", "completion", "input_ids", "extra"]
MESSAGE_KEYS = ["role", "content", "from", "value", "tool_calls", "thinking", "name", "user", "assistant"]


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A random value of the kinds that columns hold, mostly wrong ones."""
    leaves = [
        *(None, "", " ", "a", "<image>", "{", "[]", "s3://a/b", "data:;base64,A", "/dev/zero", "user", "assistant"),
        *(0, -1, 10**30, True, 1.5, float("nan"), b"", b"\x89PNG\r\n\x1a\n", 1j, object(), ANSWER, {1, 2}),
        *(np.float32(3), np.zeros((2, 2)), np.array([["a"]]), torch.zeros(3), torch.tensor(1), np.array(None)),
        Image.new("RGB", (4, 4)),
        Image.new("I;16", (0, 2)),
    ]
    kind = rng.random()
    if depth > 3 or kind < 0.5:
        return rng.choice(leaves)
    if kind < 0.7:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind < 0.85:
        keys = [*MESSAGE_KEYS, "text", "type", "function", "bytes", "path", "url", 3]
        return {rng.choice(keys): anything(rng, depth + 1) for _ in range(3)}
    return message(rng, depth)


def message(rng: random.Random, depth: int) -> dict[str, Any]:
    made = {"role": rng.choice(["user", "assistant", "tool", "system", "GPT", "nobody"]), "content": ANSWER}
    if rng.random() < 0.6:
        made[rng.choice(MESSAGE_KEYS)] = anything(rng, depth + 1)
    return made


def record(rng: random.Random) -> Any:
    if rng.random() < 0.3:
        return [message(rng, 0) for _ in range(rng.randrange(1, 4))]
    made = {rng.choice(KEYS): anything(rng) for _ in range(rng.randrange(1, 5))}
    if rng.random() < 0.5:
        made[rng.choice(COLUMN_NAMES["response"])] = ANSWER
    if rng.random() < 0.5:
        made["question"] = "what ?"
    return made


def read_or_refused(processor: Any, made: Any) -> dict[str, torch.Tensor] | str:
    """The sample, or the message of the error."""
    try:
        return load_samples(iter([made]), processor, num_samples=1, seed=0, inputs=TEXT_MODEL, with_labels=True)[0]
    except ValueError as error:
        return str(error)


@pytest.fixture(scope="module")
def processor() -> Any:
    return build("llava")[1]


@pytest.mark.parametrize("seed", range(8))
def test_a_record_is_read_or_named(processor: Any, seed: int) -> None:
    rng = random.Random(seed)
    read = 0
    for _ in range(150):
        made = record(rng)
        sample = read_or_refused(processor, made)
        if isinstance(sample, str):
            assert "calibration sample 0" in sample, made
            assert len(sample) < 3000, made
            continue
        read += 1
        if isinstance(made, list) and any(m["role"] in ("assistant", "GPT") and m["content"] == ANSWER for m in made):
            assert "fox" in processor.tokenizer.decode(sample["input_ids"][0]), made
    assert read > 5
