"""Errors of nearest rounding are those that packing makes, and are computed when they are asked for."""

import pytest
import torch
from torch import nn

from tests.families import build
from transformers_qaig.execution.offload import sequential_onload
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.quantizer.bit_costs.nearest_errors import NearestErrors, nearest_error
from transformers_qaig.structure import ModelStructure

LAYER, HEAD = "model.language_model.layers.1.mlp.up_proj", "lm_head"
PLAN = {LAYER: WeightScheme(4, 32), HEAD: WeightScheme(3, 32)}


def model_and_errors(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, NearestErrors]:
    model = build("llava", dtype=dtype)[0].eval().requires_grad_(False)
    return model, NearestErrors(model, ModelStructure.of(model), PLAN)


@pytest.mark.parametrize("sym", [False, True])
def test_a_rounded_weight_has_few_values_and_lies_within_half_a_step(sym: bool) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    error = nearest_error(weight, WeightScheme(4, 32, sym), torch.float32)
    for rounded, delta, group in zip(*(t.unflatten(1, (2, 32)).flatten(0, 1) for t in (weight + error, error, weight))):
        assert len(rounded.unique()) <= 16
        assert delta.abs().max() <= 1.01 * (group.max() - group.min()) / 15 * (1 if sym else 0.5)


def test_many_rows_are_rounded_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(11, 64)
    whole = nearest_error(weight, WeightScheme(3, 32), torch.bfloat16)
    monkeypatch.setattr("transformers_qaig.quantizer.bit_costs.nearest_errors.ROWS", 4)
    assert torch.equal(nearest_error(weight, WeightScheme(3, 32), torch.bfloat16), whole)


def test_errors_come_in_the_order_of_the_plan() -> None:
    model, errors = model_and_errors()
    assert list(errors) == [LAYER, HEAD]
    assert len(errors) == 2
    assert LAYER in errors
    assert "" not in errors
    for path, error in errors.items():
        weight = model.get_submodule(path).weight
        assert torch.equal(error, nearest_error(weight, PLAN[path], weight.dtype))


def test_in_a_block_nothing_is_kept() -> None:
    model, errors = model_and_errors()
    before = errors[LAYER], errors[HEAD]
    for path in PLAN:
        model.get_submodule(path).weight *= 2
    assert torch.allclose(errors[LAYER], 2 * before[0])
    assert torch.equal(errors[HEAD], before[1])


def test_while_a_block_runs_its_copy_is_rounded_with_scales_of_the_checkpoint() -> None:
    model, errors = model_and_errors(torch.bfloat16)
    block, seen = model.get_submodule("model.language_model.layers.1"), []
    handle = model.get_submodule(LAYER).register_forward_hook(
        lambda module, args, output: seen.append((module.weight.dtype, errors[LAYER]))
    )
    with sequential_onload(model, [block], None):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    handle.remove()
    ((dtype, error),) = seen
    assert dtype == error.dtype == torch.float32
    assert torch.equal(error, nearest_error(model.get_submodule(LAYER).weight, PLAN[LAYER], torch.bfloat16))
