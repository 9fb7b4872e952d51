"""What a product must be, and how near to it the kernels must come."""

import torch
from torch import Tensor

from tools.emulator.emulated import Emulator
from tools.emulator.weights import Weight
from transformers_qaig.formats import reference
from transformers_qaig.formats.packing import CUDA_LAYOUT

BITS = (2, 3, 4, 8)
DTYPES = (torch.float16, torch.bfloat16)
# Half a unit in the last place, and a little: largest ‖error‖ / ‖y‖ of sums in float32, rounded to the dtype.
ROUNDING = {torch.float16: 5e-4, torch.bfloat16: 4e-3}


def in_checkpoint_layout(w: Weight) -> reference.Weight:
    return reference.Weight(*w.checkpoint, w.out_features, w.in_features, w.bits, w.group_size, 0)


def exact(w: Weight, x: Tensor, activation_bits: int = 16) -> Tensor:
    if activation_bits == 8:
        x = reference.round_activations(x)
    bias = None if w.bias is None else w.bias.double()
    return torch.nn.functional.linear(x.double(), reference.dequantize(in_checkpoint_layout(w), torch.float64), bias)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def check(
    emulator: Emulator,
    x: Tensor,
    weights: list[Weight],
    activation_bits: int = 16,
    launches: int = 1,
    kernel: str = "gemv",
) -> list[Tensor]:
    """Asserts that an emulated kernel multiplies `x` by each weight within its rounding, and returns the products."""
    results = emulator.matmul(x, weights, activation_bits, launches, kernel)
    for w, y in zip(weights, results, strict=True):
        assert error(y, exact(w, x, activation_bits)) < ROUNDING[x.dtype]
    return results


def arguments(weight: Weight, layout: int = CUDA_LAYOUT):
    tensors = (weight.words, weight.scale, weight.zero) if layout == CUDA_LAYOUT else weight.checkpoint
    return (*tensors, weight.bias, 0, 0, weight.out_features, weight.bits, weight.group_size)


def close(y, x, weight, activation_bits=16):
    want = exact(weight, x, activation_bits).float()
    unit = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 1e-5}[y.dtype]
    torch.testing.assert_close(y.float(), want, rtol=unit, atol=unit * float(want.abs().mean() + 1) * 4)
