"""The checkpoints that are damaged: every way to store a weight, in tiny models."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tests import families
from tests.lifecycle import FAST
from transformers_qaig import QAIGConfig

MIXED = {
    "*.q_proj": {"bits": 2, "group_size": 32},
    "*.k_proj": {"bits": 3, "sym": True},
    "*.v_proj": 8,
    "*.down_proj": {"bits": 8, "sym": True},
    "*.up_proj": {"bits": 5},
}
SETTINGS = {
    "untied": {"bits": 4, "overrides": MIXED, "lm_head_bits": 4, "embedding_bits": 3, "vision_bits": 4},
    "tied": {"bits": 3, "overrides": MIXED, "embedding_bits": 4},
    "rotated": {
        "bits": 4,
        "activation_bits": 8,
        "recipe": {"name": "rtn", "rotation": "a8"},
        "overrides": {"*.k_proj": {"bits": 2}},
    },
    "sharded": {"bits": 4, "overrides": MIXED, "lm_head_bits": 8},
    "gemma": {"bits": 3, "embedding_bits": 8, "vision_bits": 3},
    "experts": {"bits": 4, "overrides": {"*.experts.1.*": 2, "*.experts.2.up_proj": 8, "*.q_proj": 3}},
}
FAMILIES = {"gemma": "gemma3", "experts": "qwen3_vl_moe"}
DTYPES = {"tied": torch.bfloat16, "gemma": torch.bfloat16}


@dataclass
class Checkpoint:
    """
    A whole checkpoint.

    Attributes:
        folder: with config.json and the weights.
        inputs: of a sample.
        logits: what the model answers to it.
        names: of the tensors, without the parts of the path that classes of models name differently.
    """

    folder: Path
    inputs: dict[str, Tensor]
    logits: Tensor
    names: list[str]

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


def make(name: str, folder: Path) -> Checkpoint:
    """Quantizes a tiny model as `SETTINGS[name]` says, saves it in `folder`, and loads it from there."""
    cls, config, processor = families.FAMILIES[FAMILIES.get(name, "llava")]()
    tied = name in ("tied", "gemma")
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    model = cls(config).to(DTYPES.get(name, torch.float32))
    families.randomise(model, 0)
    model.tie_weights()
    full = folder / "full"
    model.eval().save_pretrained(full)
    processor.save_pretrained(full)
    settings = QAIGConfig(**{"recipe": "rtn", **FAST, **SETTINGS[name]})
    model = AutoModelForImageTextToText.from_pretrained(full, quantization_config=settings)
    packed = folder / "packed"
    model.save_pretrained(packed, max_shard_size="60KB" if name == "sharded" else "5GB")
    inputs = families.samples(processor, 1, seed=3)[0]
    names = [key for file in packed.glob("*.safetensors") for key in keys(file)]
    return Checkpoint(packed, inputs, answer(packed, inputs), [_end(key) for key in names])


def _end(key: str) -> str:
    """The part of a tensor's name that every class of models gives it."""
    return key.rpartition("layers.")[2] if "layers." in key else ".".join(key.split(".")[-2:])


def answer(folder: Path, inputs: dict[str, Tensor]) -> Tensor:
    """The logits of the model in `folder`."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    given = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad():
        return model(**given).logits


def keys(file: Path) -> list[str]:
    with safe_open(file, "pt") as stored:
        return sorted(stored.keys())


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
