"""A packed linear layer: its product, its values, what it refuses, and how it is shown."""

import copy

import numpy as np
import pytest
import torch

from tests.nn.random_layers import GROUP, K, N, random_layer
from tests.tolerance import assert_close, assert_product
from transformers_qaig.formats.hadamard import Rotation, rotate
from transformers_qaig.nn import QAIGLinear, unpack, unpack_zero_point


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
    fresh.to_kernel_layout()
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
        layer.to_kernel_layout()
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


def test_repr_tells_the_layout():
    assert "in_features=64, out_features=24, bias=True, bits=3, group_size=32, sym=True" in repr(
        random_layer(3, sym=True)
    )
