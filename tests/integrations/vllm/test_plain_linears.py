"""Plain linears of a model of vLLM become its own, where the file holds them packed. Only vLLM's names are needed."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.integrations.engines.served_plan import ServedPlan

MODULE = "transformers_qaig.integrations.vllm.plain_linears"


class Configuration:
    """Stands for vLLM's base class of configurations."""


class Ours(Configuration):
    """Stands for this package's."""

    plan = ServedPlan({})

    def is_packed(self, prefix: str) -> bool:
        return prefix in ("projector.linear", "projector.layers.1", "projector.kept", "own", "named", "fused")


class Base(nn.Module):
    """Stands for the base of vLLM's linears."""

    def __init__(self, prefix: str, sizes: list[int]) -> None:
        super().__init__()
        self.prefix, self.output_partition_sizes, self.input_size, self.output_size = prefix, sizes, 8, sum(sizes)
        self.skip_bias_add, self.return_bias = True, True
        self.weight, self.bias = nn.Parameter(torch.zeros(sum(sizes), 8)), None


class Replicated(nn.Module):
    """Stands for vLLM's linear."""

    def __init__(self, in_features: int, out_features: int, **kwargs: Any) -> None:
        super().__init__()
        self.sizes, self.kwargs = (in_features, out_features), kwargs


class Special(nn.Linear):
    """Computes something of its own."""


class Loader:
    """Stands for vLLM's, which makes a model and then loads its weights."""

    def create_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        projector = nn.Module()
        projector.linear = nn.Linear(8, 4, dtype=torch.bfloat16)
        projector.layers = nn.Sequential(nn.GELU(), nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
        projector.kept = Special(8, 4)
        model = nn.Module()
        model.projector, model.prefix = projector, prefix
        model.own, model.named, model.fused = Base("", [6]), Base("named", [6]), Base("", [2, 4])
        return model


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    kind = type("BaseModelLoader", (), {"create_model": Loader.create_model})
    base = "vllm.model_executor"
    modules: dict[str, dict[str, Any]] = {
        **{name: {} for name in ("vllm", base, f"{base}.layers", f"{base}.layers.quantization")},
        f"{base}.model_loader": {},
        f"{base}.model_loader.base_loader": {"BaseModelLoader": kind},
        "vllm.config": {"set_current_vllm_config": nullcontext},
        f"{base}.layers.quantization.base_config": {"QuantizationConfig": Configuration},
        f"{base}.layers.linear": {"LinearBase": Base, "ReplicatedLinear": Replicated},
    }
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    import_module(MODULE).replace_in_models(Ours)
    yield kind
    del sys.modules[MODULE]


def test_packed_linears_become_the_engines(loader: type) -> None:
    config = Ours()
    model = loader().create_model(SimpleNamespace(quant_config=config), None, prefix="part")
    one, other = model.projector.linear, model.projector.layers[1]
    assert (one.sizes, other.sizes, model.prefix) == ((8, 4), (4, 2), "part")
    rest = {"quant_config": config, "return_bias": False, "skip_bias_add": False}
    assert one.kwargs == rest | {"bias": True, "params_dtype": torch.bfloat16, "prefix": "projector.linear"}
    assert other.kwargs == rest | {"bias": False, "params_dtype": torch.float32, "prefix": "projector.layers.1"}


def test_the_engines_linears_without_a_name_get_theirs(loader: type) -> None:
    config = Ours()
    model = loader().create_model(SimpleNamespace(quant_config=config), None)
    same = {"quant_config": config, "return_bias": True, "skip_bias_add": True, "params_dtype": torch.float32}
    assert model.own.sizes == (8, 6)
    assert model.own.kwargs == same | {"bias": False, "prefix": "own"}
    assert isinstance(model.named, Base)  # it could ask
    assert isinstance(model.fused, Base)


def test_what_is_not_packed_or_computes_something_else_stays(loader: type) -> None:
    model = loader().create_model(SimpleNamespace(quant_config=Ours()), None)
    assert type(model.projector.layers[2]) is nn.Linear
    assert type(model.projector.kept) is Special


def test_a_projector_that_stays_dense_is_refused(loader: type) -> None:
    config = Ours()
    config.plan = ServedPlan({"other.kept": WeightScheme(4, 32)})
    with pytest.raises(ValueError, match=r"packed weight other\.kept, and a dense one called projector\.kept"):
        loader().create_model(SimpleNamespace(quant_config=config), None)


def test_a_block_that_is_known_in_part_is_refused(loader: type) -> None:
    """vLLM asks for the names of tensors, which checks it, too, only where a model holds its configuration."""
    config = Ours()
    config.plan = ServedPlan(dict.fromkeys(("layers.0.one", "layers.0.other"), WeightScheme(4, 32)))
    config.plan.linear("layers.0.one", {})
    with pytest.raises(ValueError, match=r"no layer for the packed weight layers\.0\.other"):
        loader().create_model(SimpleNamespace(quant_config=config), None)


@pytest.mark.parametrize("config", [Configuration(), None])
def test_other_models_stay_as_they_are(config: Any, loader: type) -> None:
    import_module(MODULE).replace_in_models(Ours)  # a second model of ours wraps nothing again
    model = loader().create_model(SimpleNamespace(quant_config=config), None)
    assert type(model.projector.linear) is nn.Linear
    assert not hasattr(loader.create_model.__wrapped__, "__wrapped__")  # type: ignore[attr-defined]
