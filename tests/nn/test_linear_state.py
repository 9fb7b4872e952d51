"""The state of a packed linear layer: copies, state dicts, and tensors that are never trained."""

import copy

import pytest
import torch
from torch import nn

from tests.nn.random_layers import GROUP, K, N, random_layer
from transformers_qaig.nn import QAIGLinear, check_packed


def test_fresh_layer_is_valid_and_zero():
    layer = QAIGLinear(K, N, True, bits=5, group_size=-1, sym=True)
    check_packed(layer, "layer")
    assert layer.weight_zero_point is None
    assert torch.equal(layer(torch.randn(2, K)), torch.zeros(2, N))


def test_deepcopy_and_state_dict_are_independent_and_equal():
    layer, x = random_layer(3), torch.randn(2, K)
    expected = layer(x)
    twin = copy.deepcopy(layer)
    fresh = QAIGLinear(K, N, True, bits=3, group_size=GROUP)
    fresh.load_state_dict(layer.state_dict())
    layer.weight_packed.zero_()
    for other in (twin, fresh):
        assert torch.equal(other(x), expected)
        assert not any(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize("name", ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"])
def test_state_dict_of_another_dtype_is_refused(name):
    state = random_layer().state_dict()
    state[name] = state[name].to(torch.float16)
    fresh = nn.Sequential(QAIGLinear(K, N, True, bits=4, group_size=GROUP))
    with pytest.raises(RuntimeError, match=rf"0\.{name} has dtype torch.float16"):
        fresh.load_state_dict({f"0.{key}": value for key, value in state.items()})


def test_packed_tensors_are_never_trainable():
    layer = random_layer()
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert layer.requires_grad_(True) is layer
    assert [name for name, parameter in layer.named_parameters() if parameter.requires_grad] == ["bias"]
    layer(torch.randn(2, K)).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((N,), 2.0))
    layer.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    # What a loader does: it sets every floating tensor as a trainable parameter.
    layer.weight_scale = nn.Parameter(layer.weight_scale.detach().clone())
    assert not layer.weight_scale.requires_grad


def test_parent_requires_grad_is_refused_before_a_scale_becomes_trainable():
    model = nn.Sequential(random_layer())
    with pytest.raises(RuntimeError, match="floating point"):
        model.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weight_has_dtype_and_device_and_nothing_else():
    layer = random_layer(dtype=torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.device == layer.weight_packed.device
    assert layer.weight.numel() == 0
    assert "weight" not in layer.state_dict()
    assert "weight" not in dict(layer.named_parameters()) | dict(layer.named_buffers())
    with pytest.raises(RuntimeError):
        nn.functional.linear(torch.randn(2, K).bfloat16(), layer.weight)
    with pytest.raises((AttributeError, KeyError)):
        layer.weight = nn.Parameter(torch.zeros(N, K))
