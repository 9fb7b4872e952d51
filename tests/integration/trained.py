"""What calibration at 3 bits leaves of a trained model's answers, on questions that it was not calibrated with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_qaig import QAIGConfig
from transformers_qaig.report.evaluate import answer_logits, answer_statistics, encode_questions

Scenes = Callable[[int, int], list[list[dict[str, Any]]]]


def answers_at_three_bits(folder: Path, scenes: Scenes) -> tuple[float, dict[str, tuple[float, float, nn.Module]]]:
    """Quantizes a model with `rtn` and `default`, and asks both what full precision is asked.

    Args:
        folder: of the model.
        scenes: makes conversations, from the number of the first one and their count.

    Returns:
        the share of answers that full precision gives exactly; and recipe → that share, KL, and the quantized model.
    """
    processor = AutoProcessor.from_pretrained(folder)
    questions = encode_questions(processor, scenes(10_000, 40), [2])
    full = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    reference = answer_logits(full, questions)
    before = answer_statistics(full, processor, questions, reference=reference).summary()
    found = {}
    for recipe in ("rtn", "default"):
        config = QAIGConfig(bits=3, group_size=64, recipe=recipe, dataset=scenes(0, 12), num_samples=12)
        model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)
        after = answer_statistics(model, processor, questions, reference=reference).summary()
        found[recipe] = after["exact_match"]["mean"], after["kl"]["mean"], model
    return before["exact_match"]["mean"], found
