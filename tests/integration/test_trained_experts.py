"""The trained mixture of experts: it answers, and it survives calibration at 3 bits."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_qaig import QAIGConfig
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig.report.evaluate import answer_logits, answer_statistics, encode_questions

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "tiny-vlm-moe" / "model"


def scenes(first: int, count: int) -> list[list[dict[str, Any]]]:
    sys.path.insert(0, str(EXAMPLES / "tiny-vlm"))
    from conversations import conversation

    return [conversation(seed) for seed in range(first, first + count)]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_it_answers_as_well_with_experts_of_three_bits() -> None:
    processor = AutoProcessor.from_pretrained(MODEL)
    questions = encode_questions(processor, scenes(10_000, 40), [2])
    full = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    reference = answer_logits(full, questions)
    before = answer_statistics(full, processor, questions, reference=reference).summary()
    assert before["exact_match"]["mean"] >= 0.9

    kl = {}
    for recipe in ("rtn", "default"):
        config = QAIGConfig(bits=3, group_size=64, recipe=recipe, dataset=scenes(0, 12), num_samples=12)
        model = AutoModelForImageTextToText.from_pretrained(MODEL, quantization_config=config)
        assert sum(isinstance(module, QAIGExperts) for module in model.modules()) == 6
        after = answer_statistics(model, processor, questions, reference=reference).summary()
        assert after["exact_match"]["mean"] >= before["exact_match"]["mean"] - 0.03
        kl[recipe] = after["kl"]["mean"]
    assert kl["default"] < 0.5 * kl["rtn"]
