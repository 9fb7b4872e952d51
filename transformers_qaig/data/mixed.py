"""Refuses a sample with images and videos where a processor or a model takes only one of them at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..execution.exclusions import Sample
from .messages import ChatTools, Conversation
from .template import render

ADVICE = "give them in conversations of their own, or leave the sample out"


def check_pixels(processor: Any, form: Conversation, tools: ChatTools, sample: Mapping[str, torch.Tensor]) -> None:
    """Checks that the processor keeps the pixels of images and of videos, by encoding each without the other.

    Args:
        processor: what wrote `sample`.
        form: the conversation as its chat template takes it.
        tools: the tools it was rendered with.
        sample: the model's inputs.

    Raises:
        ValueError: the sample has fewer pixels than its images and videos have apart.
    """
    parts = [part for turn in form if isinstance(turn["content"], list) for part in turn["content"]]
    if not {"image", "video"} <= {part["type"] for part in parts}:
        return
    apart = 0
    for kind in ("image", "video"):
        alone = [
            turn
            if isinstance(turn["content"], str)
            else {**turn, "content": [part for part in turn["content"] if part["type"] in (kind, "text")]}
            for turn in form
        ]
        apart += _pixels(render(processor, alone, tools, tokenize=True, return_dict=True, return_tensors="pt"))
    if _pixels(sample) < apart:
        raise ValueError(f"{type(processor).__name__} loses pixels where a sample has images and videos: {ADVICE}")


def check_placeholders(model: nn.Module, samples: Sequence[Sample]) -> None:
    """Checks that the placeholders of images and of videos differ where the model takes the pixels of each apart.

    Raises:
        ValueError: they do not; the message names the sample.
    """
    token = getattr(getattr(model, "config", None), "video_token_id", None)
    for sample in samples:
        if not {"pixel_values", "pixel_values_videos"} <= sample.keys() or not isinstance(token, int):
            continue
        if not bool((sample["input_ids"] == token).any()):
            raise ValueError(
                f"calibration sample {sample.index} has images and videos, and {type(model).__name__} marks both with "
                f"one token, so it cannot tell them apart: {ADVICE}"
            )


def _pixels(inputs: Mapping[str, Any]) -> int:
    tensors = (value for value in inputs.values() if isinstance(value, torch.Tensor))
    return sum(value.numel() for value in tensors if value.is_floating_point())
