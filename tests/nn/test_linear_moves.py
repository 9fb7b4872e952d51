"""Casts, moves and offloading of a packed linear layer."""

import copy

import pytest
import torch
from torch import nn

from tests.nn.random_layers import GROUP, K, N, assert_same_packed, packed_of, random_layer
from transformers_qaig.nn import QAIGLinear, check_packed

CASTS = {
    "to_half": lambda m: m.to(torch.float16),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "to_device_and_dtype": lambda m: m.to("cpu", torch.float16),
    "type": lambda m: m.type(torch.float16),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_casts_reach_the_bias_only(cast, dtype):
    model = nn.Sequential(random_layer(dtype=dtype), nn.Linear(N, 2))
    before, identity = packed_of(model[0]), [id(parameter) for parameter in model[0].parameters()]
    CASTS[cast](model)
    expected = model[1].weight.dtype
    assert_same_packed(model[0], before)
    assert [id(parameter) for parameter in model[0].parameters()] == identity
    assert model[0].bias.dtype == model[0].weight.dtype == expected
    assert model(torch.randn(2, K, dtype=expected)).dtype == expected


def test_casts_with_swapped_parameters():
    layer = random_layer()
    before = packed_of(layer)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.half()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_same_packed(layer, before)
    assert layer.bias.dtype == torch.float16


def test_moves_to_meta_and_back():
    layer = random_layer()
    state = copy.deepcopy(layer.state_dict())
    x = torch.randn(2, K)
    expected = layer(x)
    layer.to("meta", torch.float16)
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert layer.weight_scale.dtype == torch.float32
    assert layer(x.half().to("meta")).shape == (2, N)
    with pytest.raises(ValueError, match="on meta but the input is on cpu"):
        layer(x)
    layer.to_empty(device="cpu").float()
    layer.load_state_dict(state)
    assert torch.equal(layer(x), expected)


def test_made_on_meta_and_filled_by_assignment():
    layer = random_layer(dtype=torch.bfloat16)
    with torch.device("meta"):
        shell = QAIGLinear(K, N, True, bits=4, group_size=GROUP, dtype=torch.bfloat16)
    check_packed(shell, "shell")
    assert {parameter.device.type for parameter in shell.parameters()} == {"meta"}
    shell.load_state_dict(layer.state_dict(), assign=True)
    check_packed(shell, "shell")
    x = torch.randn(2, K, dtype=torch.bfloat16)
    assert torch.equal(shell(x), layer(x))
    assert not any(parameter.requires_grad for parameter in shell.parameters())


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offload_gives_the_same_answers(where, tmp_path):
    from accelerate import cpu_offload, disk_offload

    model = nn.Sequential(random_layer(3), nn.ReLU(), random_layer(4, in_features=N, out_features=8, group_size=-1))
    x = torch.randn(5, K)
    expected = model(x)
    state = copy.deepcopy(model.state_dict())
    if where == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    check_packed(model[0], "0")
    for _ in range(2):
        assert torch.equal(model(x), expected)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert state.keys() == model.state_dict().keys()


def test_dispatch_with_a_device_map_gives_the_same_answers(tmp_path):
    from accelerate import dispatch_model

    model = nn.Sequential(random_layer(3), nn.ReLU(), random_layer(4, in_features=N, out_features=8, group_size=-1))
    x = torch.randn(5, K)
    expected = model(x)
    model = dispatch_model(
        model, {"0": "disk", "1": "cpu", "2": "cpu"}, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
    )
    assert model[0].weight_packed.device.type == "meta"
    assert torch.equal(model(x), expected)
