"""Quantizes a model whose tower, embeddings and head may be packed too."""

from pathlib import Path

from torch import nn
from transformers import AutoModelForImageTextToText

from tests.lifecycle import FAST
from transformers_qaig import QAIGConfig
from transformers_qaig.structure import find_input_embeddings, find_lm_head


def quantize(folder: Path, **settings) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=QAIGConfig(**{**FAST, **settings}))


def are_tied_in_memory(model: nn.Module) -> bool:
    return find_lm_head(model).module.weight_packed is find_input_embeddings(model).module.weight_packed
