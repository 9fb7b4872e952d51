"""Layers for tests of the compiled CPU kernels, and what their results must be."""

import torch
from torch import Tensor

from tests.nn.rounding_errors import ROUNDING, error
from transformers_qaig.formats.hadamard import rotate
from transformers_qaig.formats.reference import dequantize, round_activations
from transformers_qaig.nn import QAIGLinear

BITS = (2, 3, 4, 8)


def random_layer(
    bits, group_size=32, sym=False, out_features=40, in_features=96, bias=True, dtype=torch.float32, **options
):
    groups = 1 if group_size == -1 else in_features // group_size
    return QAIGLinear.from_codes(
        torch.randint(0, 2**bits, (out_features, in_features), dtype=torch.uint8),
        ((torch.rand(out_features, groups) + 0.1) * torch.randn(out_features, groups).sign()).to(dtype),
        None if sym else torch.randint(0, 2**bits, (out_features, groups), dtype=torch.uint8),
        torch.randn(out_features).to(dtype) if bias else None,
        bits=bits,
        group_size=group_size,
        **options,
    )


def exact(layer: QAIGLinear, x: Tensor) -> Tensor:
    """What the layer stands for, in float64."""
    if layer.rotation is not None:
        x = rotate(x, layer.rotation)
    if layer.activation_bits == 8:
        x = round_activations(x)
    bias = None if layer.bias is None else layer.bias.double()
    weight = dequantize(layer._weight(), torch.float64)  # in the basis of the rotated x
    return torch.nn.functional.linear(x.double(), weight, bias)


def check(layer: QAIGLinear, x: Tensor) -> None:
    """Both layouts, to the bit the same and as near to the truth as the dtype allows."""
    expected = exact(layer, x)
    checkpoint_layout = layer(x)
    assert checkpoint_layout.dtype == x.dtype
    assert error(checkpoint_layout, expected) < ROUNDING[x.dtype]
    if layer.to_kernel_layout():
        assert torch.equal(layer(x), checkpoint_layout)
        layer.to_checkpoint_layout()
