"""`check_packed` names the tensor that is damaged."""

import pytest
import torch
from torch import nn

from tests.nn.random_layers import K, N, random_layer
from transformers_qaig.nn import check_packed


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
