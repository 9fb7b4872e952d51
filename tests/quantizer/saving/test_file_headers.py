"""The header that is predicted is the one that safetensors writes, so that a size in a report is the file's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.quantizer.saving.file_headers import header_bytes

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
    budget = BitBudget(size=400_000, candidates=(2, 3, 4, 8), cost="output_error")
    chats = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a cat"}]
    config = QAIGConfig(budget=budget, group_size=32, recipe="rtn", dataset=[chats], num_samples=1)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 390_000 < size <= 400_000
    # The header is that of the widths which were likely before costs were measured: numbers may be a digit longer.
    assert abs(model.qaig_report.coverage.whole.saved - 8 * size) <= 8 * 64
