"""What the workers share: loading the model, and which linears are to be quantized."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

BLOCKS = re.compile(r"^(?!.*(vision|visual|projector)).*\blayers\.\d+\.")
"""Paths inside the language model's blocks; embeddings, head, projector and vision tower stay as they are."""
ROUTERS = re.compile(r"\.mlp\.(gate|shared_expert_gate)(\.|$)")
"""Paths of what chooses experts, and of the weight of the shared one."""
SKIPPED = (
    ".*lm_head",
    ".*vision_tower.*",
    ".*visual.*",
    ".*multi_modal_projector.*",
    ".*mlp\\.gate$",
    ".*mlp\\.shared_expert_gate$",
)
"""All that stays as it is, as regular expressions of paths: a whole path matches."""


def is_quantized(path: str) -> bool:
    """Whether a method is to quantize the linear, or the weight, of this path."""
    return BLOCKS.search(path) is not None and ROUTERS.search(path) is None


def load(path: str, dtype: torch.dtype | str = "auto") -> nn.Module:
    return auto_class(path).from_pretrained(path, dtype=dtype).eval()


def auto_class(path: str) -> Any:
    """Returns the class that loads the model: for images and text, or for text alone."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    sees = AutoConfig.from_pretrained(path).model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def linears_of(model: nn.Module, kind: type[nn.Module] = nn.Linear) -> dict[str, nn.Module]:
    """Path → linear, of those to be quantized."""
    return {name: m for name, m in model.named_modules() if isinstance(m, kind) and is_quantized(name)}
