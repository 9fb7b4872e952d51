"""The header that is predicted is the one that safetensors writes, so that a size in a report is the file's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from tests.lifecycle import FAST
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.loading.skeleton import packed_skeleton
from transformers_qaig.plan.build import list_schemes
from transformers_qaig.plan.coverage import FILE_HEADERS
from transformers_qaig.quantizer.saving.file_headers import count_headers, header_bytes, predict_headers
from transformers_qaig.quantizer.saving.state_dict import checkpoint_tensors

TENSORS = {
    "model.a.weight_packed": torch.zeros(130, 24, dtype=torch.int32),
    "model.a.weight_scale": torch.zeros(130, 2, dtype=torch.bfloat16),
    "model.ä": torch.zeros(3, dtype=torch.bool),
    "b": torch.zeros(0, dtype=torch.float16),
    "c": torch.zeros((), dtype=torch.int64),
    "d": torch.zeros(7, dtype=torch.uint8),
    "e": torch.zeros(4, dtype=torch.float8_e4m3fn),
    "f": torch.zeros(4, 2, dtype=torch.float8_e5m2),
}


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"format": "pt", "more": 'quo"ted\n'}])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_the_length_is_that_of_a_file(count: int, metadata: dict[str, str], tmp_path: Path) -> None:
    tensors = dict(list(TENSORS.items())[:count])
    save_file(tensors, tmp_path / "file.safetensors", metadata)
    data = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    assert header_bytes(on_meta, metadata) + data == (tmp_path / "file.safetensors").stat().st_size


def test_a_size_budget_holds_for_the_file(llava: Path, tmp_path: Path) -> None:
    budget = BitBudget(size=180_000, candidates=(2, 3, 4, 8), cost="output_error")
    config = QAIGConfig(budget=budget, recipe="rtn", **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 170_000 < size <= 180_000
    assert model.qaig_report.coverage.whole.saved == 8 * size


def test_the_predicted_header_is_at_least_that_of_any_choice(llava: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    options, coverage = list_schemes(model, QAIGConfig(group_size=32, budget="1x"))
    predict_headers(coverage, model, options)
    predicted = coverage.parts[FILE_HEADERS].saved
    for place in (0, 2, -1):  # all at 2 bits, all at 4; the blocks at 8 bits and all others as they are
        chosen = {path: choices[place] for path, choices in options.items()}
        plan = coverage.plan_of({path: option.scheme for path, option in chosen.items() if option.scheme is not None})
        count_headers(coverage, model, *checkpoint_tensors(packed_skeleton(model, plan), plan, []))
        assert coverage.parts[FILE_HEADERS].saved <= predicted


def test_the_predicted_header_has_room_for_offsets_into_dense_weights(llava: Path) -> None:
    """In a large model, one weight that stays as it is makes the offsets of all tensors behind it longer."""
    model = AutoModelForImageTextToText.from_pretrained(llava)
    options, coverage = list_schemes(model, QAIGConfig(group_size=32, budget=BitBudget(size="1x", candidates=(2,))))
    predict_headers(coverage, model, options)
    predicted = coverage.parts[FILE_HEADERS].saved
    plan = coverage.plan_of({path: choices[0].scheme for path, choices in options.items()})
    count_headers(coverage, model, *checkpoint_tensors(packed_skeleton(model, plan), plan, []))
    assert coverage.parts[FILE_HEADERS].saved < predicted
    assert coverage.whole.full // 8 > 10**5  # six digits, and fewer once all is packed
