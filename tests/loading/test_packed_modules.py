"""Packed modules in a model: found by the plan's paths, cast and checked after loading, turned back into dense ones."""

import pytest
from torch import nn

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.loading.packed_modules import modules_of, packed_modules, to_kernel_layout
from transformers_qaig.loading.tied_embeddings import replace_everywhere
from transformers_qaig.nn.linear import QAIGLinear

SCHEME = WeightScheme(4, 32)


def model() -> nn.Module:
    """Two places for one packed linear, and another that is dense."""
    found = nn.ModuleDict({"a": nn.Linear(32, 8), "b": nn.Linear(32, 8)})
    found["again"] = found["a"]
    replace_everywhere(found, found["a"], QAIGLinear.like(found["a"], SCHEME))
    return found


def test_a_module_is_replaced_in_all_its_places() -> None:
    found = model()
    assert found["a"] is found["again"]
    assert isinstance(found["a"], QAIGLinear)
    assert type(found["b"]) is nn.Linear


@pytest.mark.parametrize("path", ["a", "again"])
def test_modules_have_the_paths_of_the_plan(path: str) -> None:
    found = model()
    assert modules_of(found, {path: SCHEME}) == {path: found["a"]}
    assert list(packed_modules(found).values()) == [found["a"]]


def test_each_module_gets_the_layout_of_its_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, prepared = model(), []
    monkeypatch.setattr(QAIGLinear, "to_kernel_layout", lambda self: prepared.append(self))
    to_kernel_layout(found)
    assert prepared == [found["a"]]
