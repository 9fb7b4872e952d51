"""What the workers share: loading the model, and which linears are to be quantized."""

from __future__ import annotations

import re

import torch
from torch import nn

BLOCKS = re.compile(r"(^|\.)language_model\..*layers\.\d+\.")
"""Paths inside the language model's blocks; embeddings, head, projector and vision tower stay as they are."""
ROUTERS = re.compile(r"\.mlp\.(gate|shared_expert_gate)(\.|$)")
"""Paths of what chooses experts, and of the weight of the shared one."""
SKIPPED = (".*lm_head", ".*vision_tower.*", ".*multi_modal_projector.*", ".*mlp\\.gate", ".*mlp\\.shared_expert_gate")
"""All that stays as it is, as regular expressions of paths: a whole path matches."""


def is_quantized(path: str) -> bool:
    """Whether a method is to quantize the linear, or the weight, of this path."""
    return BLOCKS.search(path) is not None and ROUTERS.search(path) is None


def load(path: str, dtype: torch.dtype | str = "auto") -> nn.Module:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval()


def linears_of(model: nn.Module, kind: type[nn.Module] = nn.Linear) -> dict[str, nn.Module]:
    """Path → linear, of those to be quantized."""
    return {name: m for name, m in model.named_modules() if isinstance(m, kind) and is_quantized(name)}
