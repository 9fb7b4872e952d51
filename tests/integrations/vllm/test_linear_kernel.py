"""This package's kernels for files that vLLM reads itself. Nothing of vLLM but its names is needed."""

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.engines.test_shards import K, linear

NAME = "transformers_qaig.integrations.vllm.linear_kernel"
NAMES = ("weight_packed", "weight_scale", "weight_zero_point")
REGISTERED: list[Any] = []


class Kernel:
    def __init__(self, config: Any, *names: str):
        self.config = config
        self.w_q_name, self.w_s_name, self.w_zp_name = names


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    modules = ("vllm", "vllm.model_executor", "vllm.model_executor.kernels")
    linear, platforms = ModuleType("linear"), ModuleType("platforms")
    linear.MPLinearKernel, linear.MPLinearLayerConfig = Kernel, object  # type: ignore[attr-defined]
    linear.register_linear_kernel = lambda *given: REGISTERED.append(given)  # type: ignore[attr-defined]
    platforms.PlatformEnum = SimpleNamespace(CPU="cpu")  # type: ignore[attr-defined]
    for name in modules:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.kernels.linear", linear)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    REGISTERED.clear()
    yield import_module(NAME).QAIGLinearKernel
    del sys.modules[NAME]


def config(bits: int, zero_points: bool, **changes: Any) -> SimpleNamespace:
    kind = SimpleNamespace(
        size_bits=bits, bias=0 if zero_points else 1 << bits - 1,
        is_signed=lambda: False, is_floating_point=lambda: False,
    )  # fmt: skip
    given = {
        "weight_type": kind, "partition_weight_shape": (K, 96), "group_size": 64, "zero_points": zero_points,
        "act_type": torch.bfloat16,
    }  # fmt: skip
    return SimpleNamespace(**given | changes)


def loaded(source: nn.Module, input_dim: int = 1) -> nn.Module:
    layer = nn.Module()
    for name, tensor in source.state_dict().items():
        parameter = nn.Parameter(tensor, requires_grad=False)
        parameter.input_dim = input_dim  # type: ignore[attr-defined]
        layer.register_parameter(name, parameter)
    layer.weight_shape.data.zero_()  # that of one shard, in a fused layer
    return layer


def test_it_is_registered_for_the_cpu(kernel: Any) -> None:
    assert [(kernel, "cpu", "mp")] == REGISTERED


@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_layer_of_every_width_is_computed(kernel: Any, bits: int, zero_points: bool) -> None:
    source, x, bias = linear(bits, 96, sym=not zero_points), torch.randn(3, K), torch.randn(96)
    settings = config(bits, zero_points)
    assert kernel.can_implement(settings) == (True, None)
    made, layer = kernel(settings, *NAMES), loaded(source)
    made.process_weights_after_loading(layer)
    assert not set(NAMES) & set(dict(layer.named_parameters(recurse=False)))  # nothing is there twice
    torch.testing.assert_close(made.apply_weights(layer, x, bias), source(x) + bias)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_inputs_are_rounded_where_the_file_says_so(kernel: Any, bits: int) -> None:
    source, x = linear(bits, 96, a=8), torch.randn(3, K)
    made, layer = kernel(config(bits, True), *NAMES), loaded(source)
    layer._humming_input_quant_config = {"num_bits": 8, "strategy": "token"}  # as vLLM's scheme leaves it
    made.process_weights_after_loading(layer)
    torch.testing.assert_close(made.apply_weights(layer, x), source(x))


@pytest.mark.parametrize(
    ("rounding", "said"),
    [
        ({"num_bits": 4, "strategy": "token"}, "asks for 4 bits per token"),
        ({"num_bits": 8, "strategy": "group"}, "asks for 8 bits per group"),
        ({"num_bits": 8, "strategy": "token", "type": "float"}, "8 bits per token, floating point"),
        ({"num_bits": 8, "strategy": "token", "symmetric": False}, "8 bits per token, asymmetric"),
        ({}, "asks for None bits per None"),
    ],
)
def test_another_rounding_of_inputs_is_refused(kernel: Any, rounding: dict[str, Any], said: str) -> None:
    made, layer = kernel(config(4, True), *NAMES), loaded(linear(4, 96))
    layer._humming_input_quant_config = rounding
    with pytest.raises(NotImplementedError, match=said):
        made.process_weights_after_loading(layer)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"group_size": 48}, "do not divide"),
        ({"group_size": 16}, "below 32"),
        ({"act_type": torch.float64}, "activations are"),
        ({"weight_type": config(4, False).weight_type}, "another zero"),
        ({"weight_type": config(9, True).weight_type}, "2 to 8 bits"),
    ],
)
def test_what_it_cannot_run_is_said(kernel: Any, changes: dict[str, Any], reason: str) -> None:
    can, why = kernel.can_implement(config(4, True, **changes))
    assert not can
    assert reason in why


def test_another_order_of_words_is_refused(kernel: Any) -> None:
    made, layer = kernel(config(4, True), *NAMES), loaded(linear(4, 96), input_dim=0)
    with pytest.raises(NotImplementedError, match="VLLM_DISABLED_KERNELS"):
        made.process_weights_after_loading(layer)
