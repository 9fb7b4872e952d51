"""Embeddings, heads and linears without a `quant_config` ask the engine's. Nothing of vLLM but its names is needed."""

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

MODULE = "transformers_qaig.integrations.vllm.embeddings"


LINEARS = (
    *("ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear", "ReplicatedLinear"),
    "RowParallelLinear",
)


class Configuration:
    """Stands for vLLM's base class of configurations."""


class Ours(Configuration):
    """Stands for this package's."""

    def is_packed(self, prefix: str) -> bool:
        return prefix == "packed"


class Embedding:
    """As vLLM's takes its arguments, and makes what is registered for its name."""

    registered: ClassVar[dict[str, type]] = {}

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(Embedding.registered.get(cls.__name__, cls))

    def __init__(self, num: int, quant_config: Any = None, prefix: str = "", *, quant_method: Any = None) -> None:
        self.num, self.quant_config, self.prefix, self.quant_method = num, quant_config, prefix, quant_method


class Head(Embedding):
    """A head is an embedding in vLLM."""


class Linear(Embedding):
    """Stands for all linears."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    engine, registered = SimpleNamespace(quant_config=Ours()), dict[str, type]()
    monkeypatch.setattr(Embedding, "registered", registered)

    def register_oot(name: str) -> Any:
        return lambda layer: registered.setdefault(name, layer)

    base = "vllm.model_executor"
    modules: dict[str, dict[str, Any]] = {
        **{name: {} for name in ("vllm", base, f"{base}.layers", f"{base}.layers.quantization")},
        "vllm.config": {"get_current_vllm_config_or_none": lambda: engine},
        f"{base}.custom_op": {
            "PluggableLayer": SimpleNamespace(register_oot=register_oot), "op_registry_oot": registered
        },
        f"{base}.layers.quantization.base_config": {"QuantizationConfig": Configuration},
        f"{base}.layers.linear": dict.fromkeys(LINEARS, Linear),
        f"{base}.layers.vocab_parallel_embedding": {"ParallelLMHead": Head, "VocabParallelEmbedding": Embedding},
    }  # fmt: skip
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    import_module(MODULE).ask_configuration(Ours)
    yield engine
    del sys.modules[MODULE]


@pytest.mark.parametrize("layer", [Embedding, Head])
def test_what_gets_no_configuration_asks_the_engine(layer: type, engine: SimpleNamespace) -> None:
    made = layer(7, prefix="embed_tokens")
    assert isinstance(made, layer)
    assert (made.num, made.quant_config, made.prefix) == (7, engine.quant_config, "embed_tokens")


def test_linears_ask_where_the_file_holds_them_packed(engine: SimpleNamespace) -> None:
    assert Linear(7, prefix="packed").quant_config is engine.quant_config
    assert Linear(7, prefix="dense").quant_config is None
    assert Linear(7).quant_config is None


def test_what_is_given_counts(engine: SimpleNamespace) -> None:
    other = Configuration()
    assert Embedding(7, other).quant_config is other
    assert Embedding(7, quant_method="a method").quant_config is None


def test_other_models_stay_as_they_are(engine: SimpleNamespace) -> None:
    engine.quant_config = Configuration()
    assert Embedding(7).quant_config is None
    import_module(MODULE).ask_configuration(Ours)  # a second model of ours registers nothing again
