"""What the workers share: loading the model, and which linears are to be quantized."""

from __future__ import annotations

import re

import torch
from torch import nn

BLOCKS = re.compile(r"(^|\.)language_model\..*layers\.\d+\.")
"""Paths inside the language model's blocks; embeddings, head, projector and vision tower stay as they are."""
SKIPPED = (".*lm_head", ".*vision_tower.*", ".*multi_modal_projector.*")
"""The same, as regular expressions of what to leave out: a whole path matches."""


def load(path: str, dtype: torch.dtype | str = "auto") -> nn.Module:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval()


def linears_of(model: nn.Module, kind: type[nn.Module] = nn.Linear) -> dict[str, nn.Module]:
    """Path → linear, of those in the language model's blocks."""
    return {name: m for name, m in model.named_modules() if isinstance(m, kind) and BLOCKS.search(name)}
