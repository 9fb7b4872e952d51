import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from tests.tolerance import assert_close, assert_product
from transformers_qaig.formats.hadamard import Rotation, rotate
from transformers_qaig.nn import QAIGLinear, check_packed, unpack, unpack_zero_point

N, K, GROUP = 24, 64, 32


def random_layer(
    bits=4, group_size=GROUP, sym=False, bias=True, dtype=torch.float32, in_features=K, out_features=N, rotation=None
):
    groups = 1 if group_size == -1 else in_features // group_size
    return QAIGLinear.from_codes(
        torch.randint(0, 2**bits, (out_features, in_features), dtype=torch.uint8),
        (torch.rand(out_features, groups) * 0.1 + 0.01).to(dtype),
        None if sym else torch.randint(0, 2**bits, (out_features, groups), dtype=torch.uint8),
        torch.randn(out_features).to(dtype) if bias else None,
        bits=bits,
        group_size=group_size,
        rotation=rotation,
    )


def packed_of(layer):
    return {name: tensor.detach().clone() for name, tensor in layer.state_dict().items() if name != "bias"}


def assert_same_packed(layer, before):
    after = packed_of(layer)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group_size", [GROUP, -1])
def test_forward_is_the_dense_layer(bits, sym, bias, group_size):
    layer = random_layer(bits, group_size, sym, bias)
    x = torch.randn(3, 5, K)
    assert_product(layer(x), x, layer.dequantize(), layer.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotated_layer_is_the_dense_layer_in_the_original_basis(dtype):
    layer = random_layer(8, rotation=Rotation(32, 4), dtype=dtype)
    x = torch.randn(3, 5, K).to(dtype)
    weight = layer.dequantize(torch.float32)
    assert_product(layer(x), x, weight, layer.bias, weight_in=dtype)
    plain = copy.deepcopy(layer)
    plain.rotation = None
    assert_close(rotate(weight, layer.rotation), plain.dequantize(torch.float32), 2 * 32)
    assert layer.dequantize().dtype == dtype
    assert layer.state_dict().keys() == plain.state_dict().keys()
    assert "rotation=(32, 4)" in repr(layer)


def test_a_rotation_travels_with_the_layer():
    layer, x = random_layer(rotation=Rotation(16, 2)), torch.randn(2, K)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    fresh = QAIGLinear(K, N, True, bits=4, group_size=GROUP, rotation=Rotation(16, 2))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), expected)
    fresh.prepare()
    assert torch.equal(fresh(x), expected)
    with pytest.raises(ValueError, match="rotation: block must be one of"):
        QAIGLinear(K, N, True, bits=4, group_size=GROUP, rotation=Rotation(48, 2))


def test_from_codes_keeps_the_values():
    codes = torch.randint(0, 8, (N, K), dtype=torch.uint8)
    scale, zero = torch.rand(N, 2).bfloat16(), torch.randint(0, 8, (N, 2), dtype=torch.uint8)
    layer = QAIGLinear.from_codes(codes, scale, zero, bits=3, group_size=GROUP)
    assert torch.equal(unpack(layer.weight_packed, 3, K), codes)
    assert torch.equal(unpack_zero_point(layer.weight_zero_point, 3, N), zero)
    assert torch.equal(layer.weight_scale, scale)
    assert layer.weight_scale.dtype == layer.weight.dtype == torch.bfloat16
    assert layer.dequantize().dtype == torch.bfloat16
    assert layer.weight_shape.tolist() == [N, K]
    assert list(layer.state_dict()) == ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"]
    assert layer.weight_scale.data_ptr() != scale.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(N, K)}, "codes must be a 2-D torch.uint8"),
        ({"codes": torch.zeros(K, dtype=torch.uint8)}, "codes must have shape"),
        ({"codes": torch.full((N, K), 8, dtype=torch.uint8)}, r"codes must be in 0\.\.7"),
        ({"scale": torch.ones(N, 3)}, r"scale must have shape \(24, 2\), got \(24, 3\)"),
        ({"scale": torch.ones(N, 2, dtype=torch.float64)}, "dtype must be one of"),
        ({"scale": torch.full((N, 2), torch.nan)}, "weight_scale has values that are not finite"),
        ({"zero": torch.zeros(2, N, dtype=torch.uint8)}, "zero must have shape"),
        ({"zero": torch.full((N, 2), 8, dtype=torch.uint8)}, r"must be in 0\.\.7"),
        ({"bias": torch.zeros(N + 1)}, "bias must be floating of shape"),
        ({"group_size": 48}, "group_size must be -1"),
        ({"bits": 9}, "bits must be between 2 and 8"),
    ],
)
def test_from_codes_refuses_what_does_not_fit(change, message):
    kwargs = {
        "codes": torch.zeros(N, K, dtype=torch.uint8),
        "scale": torch.ones(N, 2),
        "zero": torch.zeros(N, 2, dtype=torch.uint8),
        "bias": None,
        "bits": 3,
        "group_size": GROUP,
    }
    with pytest.raises(ValueError, match=message):
        QAIGLinear.from_codes(**{**kwargs, **change})


@pytest.mark.parametrize("prepared", [False, True])
def test_an_input_that_does_not_fit_is_refused_by_its_width(prepared):
    codes = torch.zeros(N, K, dtype=torch.uint8)
    layer = QAIGLinear.from_codes(codes, torch.ones(N, 1), None, bits=2, group_size=-1)  # a row ends within a word
    if prepared:
        layer.prepare()
    for x in (torch.ones(3, K - 1), torch.ones(3, K + 1), torch.ones(())):
        with pytest.raises(ValueError, match=rf"\[\.\.\., {K}\], its in_features"):
            layer(x)
    for x in (None, [1.0] * K, np.ones((1, K))):
        with pytest.raises(ValueError, match=f"input must be a tensor, got {type(x).__name__}"):
            layer(x)
    for layout in (torch.strided, torch.jagged):
        with pytest.raises(ValueError, match="nested"):
            layer(torch.nested.nested_tensor([torch.ones(1, K), torch.ones(2, K)], layout=layout))


def test_constructor_refuses_what_has_no_kernel():
    with pytest.raises(ValueError, match="activation_bits must be 8 or 16"):
        QAIGLinear(K, N, False, bits=4, group_size=GROUP, activation_bits=4)
    with pytest.raises(ValueError, match="dtype must be one of"):
        QAIGLinear(K, N, False, bits=4, group_size=GROUP, dtype=torch.float64)


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


def test_weight_tells_dtype_and_device_and_nothing_else():
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


def test_repr_tells_the_layout():
    assert "in_features=64, out_features=24, bias=True, bits=3, group_size=32, sym=True" in repr(
        random_layer(3, sym=True)
    )


def corrupted(name, value):
    layer = random_layer()
    layer._parameters[name] = None if value is None else nn.Parameter(value, requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_packed", None, "is missing"),
        ("weight_packed", torch.zeros(N, 7, dtype=torch.int32), r"has shape \(24, 7\), expected \(24, 8\)"),
        ("weight_packed", torch.zeros(N, 8), "has dtype torch.float32, expected torch.int32"),
        ("weight_scale", torch.full((N, 2), torch.inf), "not finite"),
        ("weight_scale", torch.zeros(N, 2, dtype=torch.int32), "expected float16, bfloat16 or float32"),
        ("weight_zero_point", None, "is missing"),
        ("weight_zero_point", torch.zeros(N, 2, dtype=torch.int32), r"expected \(3, 2\)"),
        ("weight_shape", torch.tensor([K, N]), r"says \[64, 24\], expected \[24, 64\]"),
        ("weight_shape", torch.tensor([N, K], dtype=torch.int32), "has dtype torch.int32"),
    ],
)
def test_check_packed_names_the_tensor(name, value, message):
    with pytest.raises(ValueError, match=rf"model\.q_proj\.{name} .*{message}"):
        check_packed(corrupted(name, value), "model.q_proj")


def test_check_packed_refuses_a_zero_point_in_a_symmetric_layer():
    layer = random_layer(sym=True)
    layer.weight_zero_point = nn.Parameter(torch.zeros(3, 2, dtype=torch.int32), requires_grad=False)
    with pytest.raises(ValueError, match="weight_zero_point is there"):
        check_packed(layer, "q_proj")


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


def test_gradient_passes_through_to_trainable_layers():
    model, x = nn.Sequential(nn.Linear(K, K), random_layer()), torch.randn(2, K)
    model(x).square().sum().backward()
    weight = model[0].weight.detach().clone().requires_grad_()
    hidden = nn.functional.linear(x, weight, model[0].bias.detach())
    nn.functional.linear(hidden, model[1].dequantize(), model[1].bias).square().sum().backward()
    assert_close(model[0].weight.grad, weight.grad, K + K + N)
    assert model[1].weight_scale.grad is None


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_forward_mode_derivatives_are_those_of_the_dense_layer(activation_bits: int) -> None:
    layer = random_layer()
    layer.activation_bits = activation_bits
    x, v, v_bias = torch.randn(5, K), torch.randn(5, K), torch.randn(N)
    _, along_x = torch.func.jvp(layer, (x,), (v,))
    assert_product(along_x, v, layer.dequantize(), None)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v))).tangent
    assert torch.equal(tangent, along_x)

    def of_bias(bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"bias": bias}, (x,))

    _, along_bias = torch.func.jvp(of_bias, (layer.bias.detach(),), (v_bias,))
    torch.testing.assert_close(along_bias, v_bias.expand(5, N))


def test_a_tangent_of_the_packed_weight_is_refused() -> None:
    layer = random_layer()
    scale = layer.weight_scale.detach()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scale, torch.ones_like(scale))
        with pytest.raises(NotImplementedError, match="packed weight is a constant"):
            torch.func.functional_call(layer, {"weight_scale": dual}, (torch.randn(1, K),))
