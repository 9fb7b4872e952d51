"""While a model is quantized, its products on the CPU are fast, and alike for every number of threads."""

import pytest
import torch
from torch.nn.functional import linear, pad
from torch.overrides import _get_current_function_mode_stack  # type: ignore[attr-defined]

from tests.families import build
from transformers_qaig.execution import cpu_products as module
from transformers_qaig.execution.cpu_products import cpu_products
from transformers_qaig.execution.few_rows import FewRows
from transformers_qaig.execution.float32_products import Float32Products
from transformers_qaig.structure import ModelStructure


@pytest.mark.parametrize(
    ("dtype", "slow", "entered"),
    [
        (torch.float32, (), [FewRows]),
        (torch.bfloat16, (), []),
        (torch.bfloat16, (torch.bfloat16,), [FewRows, Float32Products]),
        (torch.float32, (torch.float16,), [FewRows, Float32Products]),
    ],
)
def test_what_is_entered(dtype, slow, entered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_slow", slow.__contains__)
    structure = ModelStructure.of(build("llava", dtype=dtype)[0])
    with cpu_products(structure):
        assert [type(mode) for mode in _get_current_function_mode_stack()] == entered
    assert not _get_current_function_mode_stack()


def test_widened_products_of_few_rows_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_slow", lambda dtype: True)
    padded: list[int] = []

    def counted(x, widths):
        padded.append(widths[-1])
        return pad(x, widths)

    monkeypatch.setattr("transformers_qaig.execution.few_rows.pad", counted)
    with cpu_products(ModelStructure.of(build("llava", dtype=torch.bfloat16)[0])):
        linear(torch.randn(7, 96).bfloat16(), torch.randn(40, 96).bfloat16())
    assert padded == [1]
