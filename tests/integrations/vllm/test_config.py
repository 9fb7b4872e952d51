"""What the plugin's configuration refuses and warns of. Stand-ins take the place of all of vLLM."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.integrations.engines.served_plan import ServedPlan

PLUGIN = "transformers_qaig.integrations.vllm"
OPTION = '{"custom_ops": ["-rotary_embedding"]}'


class StandIn(ModuleType):
    """A module that has every class it is asked for."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        vars(self)[name] = type(name, (), {})
        return vars(self)[name]


class Finder:
    """Finds a stand-in for every module of vLLM."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "vllm" else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, _: ModuleType) -> None:
        pass


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith((PLUGIN, "vllm"))}
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    import_module("vllm.model_executor.layers.quantization").register_quantization_config = lambda _: lambda kind: kind  # type: ignore[attr-defined]
    config = import_module(f"{PLUGIN}.config")
    monkeypatch.setattr(config, "ask_configuration", lambda _: None)
    monkeypatch.setattr(config, "replace_in_models", lambda _: None)
    yield config
    for name in list(sys.modules):
        if name.startswith((PLUGIN, "vllm")):
            del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize(
    ("is_latent", "is_cpu", "operators", "is_warned"),
    [
        (True, True, [], True),
        (True, True, ["-rotary_embedding"], False),
        (True, True, ["none"], False),
        (True, False, [], False),
        (False, True, [], False),
    ],
)
def test_the_rotation_of_latent_queries_on_the_cpu_is_warned_of(
    is_latent: bool, is_cpu: bool, operators: list[str], is_warned: bool, plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SimpleNamespace(
        model_config=SimpleNamespace(use_mla=is_latent), compilation_config=SimpleNamespace(custom_ops=operators)
    )
    said: list[str] = []
    monkeypatch.setattr(plugin, "get_current_vllm_config_or_none", lambda: engine)
    monkeypatch.setattr(plugin, "current_platform", SimpleNamespace(is_cpu=lambda: is_cpu))
    monkeypatch.setattr(plugin, "WeightsMapper", lambda **_: None)
    monkeypatch.setattr(plugin._logger, "warning", lambda text, *_: said.append(text))
    monkeypatch.setitem(sys.modules, "regex", SimpleNamespace(compile=str))
    config = plugin.QAIGServedConfig(ServedPlan({}))
    for _ in range(2):  # vLLM asks for the names of every part of a model
        config.get_checkpoint_weight_mapper()
    assert [OPTION in text for text in said] == [True] * is_warned


def test_the_fused_linear_of_bloom_is_refused_if_it_is_packed(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(hf_text_config=SimpleNamespace(model_type="bloom"))
    monkeypatch.setattr(plugin, "get_current_vllm_config", lambda: SimpleNamespace(model_config=model))
    config = plugin.QAIGServedConfig(ServedPlan({"h.0.query_key_value": WeightScheme(4, 32, True)}))
    config.packed_modules_mapping = {}
    layer = plugin.LinearBase()
    assert isinstance(config.get_quant_method(layer, "h.1.query_key_value"), plugin.UnquantizedLinearMethod)
    with pytest.raises(NotImplementedError, match=r"h\.0\.query_key_value: vLLM reshapes"):
        config.get_quant_method(layer, "h.0.query_key_value")
