"""Tiny, randomly initialised VLMs of many families, with a local tokenizer and processor: nothing comes from the Hub.

Every family is one function that returns `(model class, config, processor)`, in tests/tiny_models. `build` makes the
model and gives it weights that make tests bite: no norm is the identity, no bias and no gate is zero.
"""

import sys
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))  # this file is imported from its own folder, too

from tests import seeds
from tests.tiny_models.llava import llava, llava_next, llava_next_video, llava_onevision
from tests.tiny_models.parts import CORPUS, Family
from tests.tiny_models.qwen import qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl, qwen3_vl_moe
from tests.tiny_models.tiled_image import idefics3, internvl, mllama, smolvlm
from tests.tiny_models.weights import randomise
from tests.tiny_models.whole_image import gemma3, glm4v, mistral3, paligemma

FAMILIES: dict[str, Callable[[], Family]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "internvl": internvl,
    "gemma3": gemma3,
    "mllama": mllama,
    "paligemma": paligemma,
    "mistral3": mistral3,
    "glm4v": glm4v,
}
VIDEO_FAMILIES = [
    *("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "llava_onevision", "llava_next_video"),
    *("smolvlm", "internvl", "glm4v"),
]
"""Those that take videos."""
ONLY_VIDEO: dict[str, Callable[[], Family]] = {"llava_next_video": llava_next_video, "qwen2_vl": qwen2_vl}
"""Those that only the tests of videos build."""


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The tiny model of family `name`, in eval mode, and its processor."""
    cls, config, processor = (FAMILIES | ONLY_VIDEO)[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed(seed))
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    assert type(model) is cls, f"{name}: the auto class built a {type(model).__name__}, expected {cls.__name__}"
    randomise(model, seed)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    return model.eval(), processor


def conversations(n: int, *, seed: int = 0, image: bool = True) -> list[list[dict[str, Any]]]:
    """`n` questions with answers, with pictures of different sizes and texts of different lengths.

    `image=False` leaves the pictures out.
    """
    rng = seeds.rng(seed)
    words = " ".join(CORPUS).split()
    found = []
    for _ in range(n):
        height, width = rng.integers(28, 96, size=2)
        picture = Image.fromarray(rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8))
        question, answer = (" ".join(rng.choice(words, size=rng.integers(3, 24))) for _ in range(2))
        content = [{"type": "image", "image": picture}] * image + [{"type": "text", "text": question}]
        found.append(
            [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
        )
    return found


def samples(processor: Any, n: int, *, seed: int = 0, image: bool = True) -> list[dict[str, Tensor]]:
    """Model inputs of batch 1 made of [`conversations`]."""
    return [
        dict(processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt"))
        for messages in conversations(n, seed=seed, image=image)
    ]


def save(name: str, folder: str | PathLike[str], dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes family `name` as a checkpoint folder that the Auto classes load."""
    model, processor = build(name, dtype=dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
