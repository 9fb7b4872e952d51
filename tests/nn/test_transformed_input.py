"""A stand-in multiplies what its layer would: the input as it is transformed, in the dtype of the weight's product."""

import torch
from torch import nn

from transformers_qaig.nn.transformed_input import TransformedInputLinear


def test_the_input_is_transformed_before_it_is_multiplied() -> None:
    weight, bias = torch.eye(3)[:2], nn.Parameter(torch.tensor([10.0, 20.0]))
    layer = TransformedInputLinear(weight, bias, lambda x: 2 * x.float())
    y = layer(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert y.tolist() == [[12.0, 24.0]]


def test_the_weight_is_frozen_and_the_bias_is_shared() -> None:
    bias = nn.Parameter(torch.zeros(2))
    layer = TransformedInputLinear(torch.zeros(2, 3), bias, lambda x: x)
    assert not layer.weight.requires_grad
    assert layer.bias is bias
    assert (layer.in_features, layer.out_features) == (3, 2)
    assert TransformedInputLinear(torch.zeros(2, 3), None, lambda x: x).bias is None
