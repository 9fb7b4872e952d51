"""A model without weights, packed as a plan says; the model it is made of stays as it is."""

import pytest
import torch
from torch import nn

from tests.families import build
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.loading.skeleton import likely_plan, pack_modules, packed_skeleton
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.plan.allocate import SchemeOption

PATH = "model.language_model.layers.0.mlp.up_proj"


def test_a_skeleton_has_the_packed_shapes_and_no_memory() -> None:
    model, _ = build("llava")
    skeleton = packed_skeleton(model, {PATH: WeightScheme(3, 32)})
    packed = skeleton.get_submodule(PATH)
    assert isinstance(packed, QAIGLinear)
    assert packed.weight_packed.shape == (packed.out_features, 3 * packed.in_features // 32)
    assert all(tensor.is_meta for tensor in skeleton.parameters())
    assert type(model.get_submodule(PATH)) is nn.Linear
    assert not any(tensor.is_meta for tensor in model.parameters())


def test_a_scheme_that_a_weight_cannot_have_names_it() -> None:
    model, _ = build("llava")
    with pytest.raises(ValueError, match=f"The plan does not fit {PATH}: "):
        packed_skeleton(model, {PATH: WeightScheme(3, 48)})
    with pytest.raises(ValueError, match=r"dtype=torch\.float64: .*Load the model with dtype=torch\.float32"):
        pack_modules(model.to(torch.float64), {PATH: WeightScheme(3, 32)})


def test_the_likely_plan_uses_up_the_budget() -> None:
    options = {f"w{i}": [SchemeOption(WeightScheme(b, 32), 1000 * b, 0.0) for b in (2, 3, 4)] for i in range(4)}
    plan = likely_plan(options, 12_000, [])
    assert sum(scheme.bits for scheme in plan.values()) == 12
