"""The trained mixture of experts: it answers, and it survives calibration at 3 bits."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trained import answers_at_three_bits
from transformers_qaig.nn.experts import QAIGExperts

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "tiny-vlm-moe" / "model"


def scenes(first: int, count: int) -> list[list[dict[str, Any]]]:
    sys.path.insert(0, str(EXAMPLES / "tiny-vlm"))
    from conversations import conversation

    return [conversation(seed) for seed in range(first, first + count)]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_it_answers_as_well_with_experts_of_three_bits() -> None:
    before, after = answers_at_three_bits(MODEL, scenes)
    assert before >= 0.9
    for exact, _, model in after.values():
        assert sum(isinstance(module, QAIGExperts) for module in model.modules()) == 6
        assert exact >= before - 0.03
    assert after["default"][1] < 0.5 * after["rtn"][1]
