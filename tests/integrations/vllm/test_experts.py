"""A stack of experts in vLLM, from the plan to the product. Nothing of vLLM but its names is needed."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.integrations.engines.served_plan import ServedPlan
from transformers_qaig.integrations.vllm.experts_stack import EmptyStack
from transformers_qaig.nn.experts import QAIGExperts

STACK, EXPERTS, HIDDEN, INNER = "model.layers.0.mlp.experts", 5, 96, 64
ROOM = "transformers_qaig.integrations.vllm"
BASES = {
    "fused_moe.fused_moe_method_base": ("FusedMoEMethodBase",),
    "linear": ("LinearMethodBase",),
    "vocab_parallel_embedding": ("UnquantizedEmbeddingMethod",),
}


def plan(**bits: dict[str, int]) -> ServedPlan:
    """Of one stack: projection → named experts → bits."""
    return ServedPlan(
        {
            f"{STACK}.{named}.{projection}": WeightScheme(width, 32)
            for projection, widths in bits.items()
            for named, width in widths.items()
        }
    )


MIXED = {"gate_proj": {"*": 4}, "up_proj": {"0-2,4": 3, "3": 8}, "down_proj": {"1": 2, "0,2-4": 5}}


class Method:
    def __init__(self, moe: Any):
        self.moe = moe


@pytest.fixture
def experts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    layers = "vllm.model_executor.layers"
    for name in ("vllm", "vllm.model_executor", layers, f"{layers}.fused_moe"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, classes in BASES.items():
        module = ModuleType(name)
        for each in classes:
            setattr(module, each, type(each, (Method,), {}))
        monkeypatch.setitem(sys.modules, f"{layers}.{name}", module)
    yield import_module(f"{ROOM}.experts")
    del sys.modules[f"{ROOM}.experts"]


class Layer(nn.Module):
    """As vLLM's, as far as the method looks."""

    def __init__(self, activation: str = "silu", **attributes: Any):
        super().__init__()
        self.activation = SimpleNamespace(value=activation, is_gated=not activation.endswith("_no_mul"))
        vars(self).update({"swiglu_limit": None, "apply_router_weight_on_input": False, **attributes})


def created(experts: Any, layer: Layer, schemes: Any, has_bias: bool = False, **parallel: Any) -> Any:
    moe = SimpleNamespace(
        has_bias=has_bias, moe_parallel_config=SimpleNamespace(**{"tp_size": 1, "use_ep": False, **parallel})
    )
    method = experts.QAIGExpertsMethod(STACK, moe, schemes)
    method.create_weights(layer, EXPERTS, HIDDEN, INNER, torch.float32, weight_loader=None, global_num_experts=EXPERTS)
    return method


def filled(schemes: Any, gated: bool = True) -> QAIGExperts:
    """Makes packed experts of random content."""
    stack = EmptyStack(EXPERTS, HIDDEN, INNER, gated=gated, activation=F.silu, dtype=torch.float32)
    module = QAIGExperts.like(stack, schemes, device="cpu")
    for parameter in module.parameters():
        if parameter.dtype == torch.int32:
            parameter.data = torch.randint(-(2**31), 2**31 - 1, parameter.shape, dtype=torch.int32)
        else:
            parameter.data = torch.rand(parameter.shape) * 0.1
    return module


def reference(module: QAIGExperts, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Computes the experts one by one, from dequantized weights."""
    out = torch.zeros_like(x)
    for token, (chosen, shares) in enumerate(zip(ids.tolist(), weights)):
        for expert, share in zip(chosen, shares):
            parts = {name: module.dequantize(expert, name) for name in module.stack.projections}
            inner = F.silu(x[token] @ parts["gate_proj"].T) * (x[token] @ parts["up_proj"].T)
            out[token] += share * (inner @ parts["down_proj"].T)
    return out


def test_every_expert_keeps_its_width() -> None:
    served = plan(**MIXED)
    found = served.experts(STACK, EXPERTS)
    assert {name: scheme.bits for name, scheme in found.items()} == {
        "gate_proj": (4, 4, 4, 4, 4),
        "up_proj": (3, 3, 3, 8, 3),
        "down_proj": (5, 2, 5, 5, 5),
    }
    assert not served.unused
    assert served.experts("model.layers.1.mlp.experts", EXPERTS) == {}


@pytest.mark.parametrize("named", [{"0-3": 4}, {"0-5": 4}, {"*": 4, "1": 3}, {"0-4": 4, "4": 4}])
def test_experts_that_are_missing_unknown_or_named_twice_are_refused(named: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=STACK):
        plan(down_proj=named).experts(STACK, EXPERTS)


def test_the_chosen_experts_are_computed(experts: Any) -> None:
    schemes, layer = plan(**MIXED).experts(STACK, EXPERTS), Layer()
    source, method = filled(schemes), created(experts, layer, schemes)
    guard = ("0.gate_proj.weight", torch.empty(0))
    assert set(layer.load_weights([guard, *source.state_dict().items()])) == set(source.state_dict())
    method.process_weights_after_loading(layer)
    x, weights = torch.randn(7, HIDDEN), torch.rand(7, 2)
    ids = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(7)]).int()
    torch.testing.assert_close(
        method.apply(layer, x, weights, ids), reference(source, x, ids, weights), rtol=1e-4, atol=1e-4
    )


def test_a_model_that_loads_experts_by_code_of_its_own(experts: Any) -> None:
    """As DeepSeek-V2's: it takes names apart, and looks for parameters."""
    names = import_module(f"{ROOM}.experts_names")
    schemes, layer = plan(**MIXED).experts(STACK, EXPERTS), Layer()
    source, method = filled(schemes), created(experts, layer, schemes)
    parameters = {f"{STACK}.routed_experts.{name}": parameter for name, parameter in layer.named_parameters()}
    for name, tensor in source.state_dict().items():
        renamed = re.sub(names.PATTERN, names.REPLACEMENT, f"{STACK}.{name}")
        assert renamed == re.sub(names.PATTERN, names.REPLACEMENT, renamed)  # vLLM's loaders rename level by level
        assert not re.search("gate_proj|up_proj", renamed)  # or it is a part of another layer
        parameters[renamed].weight_loader(parameters[renamed], tensor)
    guarded = parameters[f"{STACK}.routed_experts.w13_weight"]
    asked = {"shard_id": "w1", "expert_id": 0, "return_success": True}
    assert guarded.weight_loader(guarded, torch.empty(0), "w13_weight", **asked)  # the guard
    with pytest.raises(ValueError, match="its file holds w13_weight, too"):
        guarded.weight_loader(guarded, torch.zeros(INNER, HIDDEN), "w13_weight", **asked)
    method.process_weights_after_loading(layer)
    assert not list(layer._parameters)
    for name, tensor in source.state_dict().items():
        assert torch.equal(layer.packed.state_dict()[name], tensor), name


def test_another_weight_in_the_file_is_refused(experts: Any) -> None:
    layer = Layer()
    created(experts, layer, plan(**MIXED).experts(STACK, EXPERTS))
    with pytest.raises(ValueError, match=f"{STACK} is packed, and its file holds gate_up_proj"):
        list(layer.load_weights([("gate_up_proj", torch.zeros(1))]))


def test_a_missing_or_misshapen_tensor_names_the_stack(experts: Any) -> None:
    schemes = plan(**MIXED).experts(STACK, EXPERTS)
    tensors = filled(schemes).state_dict()
    for wrong, message in (({}, "holds no gate_proj_packed"), ({"gate_proj_packed": torch.zeros(3).int()}, "shape")):
        layer = Layer()
        method = created(experts, layer, schemes)
        given = {**tensors, **wrong} if wrong else {n: t for n, t in tensors.items() if n != "gate_proj_packed"}
        list(layer.load_weights(given.items()))
        with pytest.raises(ValueError, match=rf"{STACK}.*{message}"):
            method.process_weights_after_loading(layer)


@pytest.mark.parametrize(
    ("layer", "options", "named"),
    [
        (Layer("swigluoai"), {"has_bias": True}, "the activation 'swigluoai', biases"),
        (Layer(swiglu_limit=7.0), {}, "a limit of the gate"),
        (Layer(apply_router_weight_on_input=True), {}, "weights of the router at the input"),
        (Layer(), {"use_ep": True}, "expert parallelism"),
        (Layer(), {"tp_size": 2}, "--tensor-parallel-size 1"),
    ],
)
def test_what_packed_experts_do_not_compute_is_refused(experts: Any, layer: Layer, options: Any, named: str) -> None:
    with pytest.raises(NotImplementedError, match=named):
        created(experts, layer, plan(**MIXED).experts(STACK, EXPERTS), **options)


def test_projections_that_the_layer_lacks_are_refused(experts: Any) -> None:
    with pytest.raises(ValueError, match="has up_proj, down_proj in vLLM, and the plan packs gate_proj"):
        created(experts, Layer("silu_no_mul"), plan(**MIXED).experts(STACK, EXPERTS))
