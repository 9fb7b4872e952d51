"""What the plugin's configuration refuses and warns of. Stand-ins take the place of all of vLLM."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from transformers_qaig.formats.scheme import Rotation, WeightScheme
from transformers_qaig.integrations.engines.served_plan import ServedPlan
from transformers_qaig.loading.rotation_record import record_rotations

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


def test_a_plan_that_is_not_the_files_is_refused_before_a_layer_is_made(plugin: Any, tmp_path: Path) -> None:
    settings = {"quant_method": "qaig", "bits": 4, "plan": {"h.0.o_proj": {"bits": 4, "group_size": 32, "sym": True}}}
    config = plugin.QAIGServedConfig.from_config(settings)
    rotated = {"h.0.o_proj": WeightScheme(4, 32, True, Rotation(32, 1))}
    config.maybe_update_config(str(tmp_path), hf_config=None, revision=None)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", record_rotations(rotated))
    with pytest.raises(ValueError, match=r"gives h\.0\.o_proj no rotation"):
        config.maybe_update_config(str(tmp_path), hf_config=None, revision=None)
