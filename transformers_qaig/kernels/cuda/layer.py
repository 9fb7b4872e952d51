"""A layer as `operators.py` uses it: its checked packed weight, and the kernel that multiplies it."""

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ...formats import checks, reference
from ...formats.hadamard import Rotation
from ...formats.packing import CUDA_LAYOUT
from . import interface
from .interface import Shape

MAX_QUANTIZED_ROWS = 2**31 - 1  # each is a block of a launch
SUFFIX = {torch.float16: "f16", torch.bfloat16: "bf16"}


class Weight(NamedTuple):
    """A packed weight in CUDA layout, checked."""

    shape: Shape
    words: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None = None


class MatmulKernel(Enum):
    """The kernel that multiplies a layer.

    The first three read packed words. `DEQUANTIZE` unpacks the weight for torch. `REFERENCE` is plain torch.
    """

    GEMV = "gemv"
    GEMM_F16 = "gemm_f16"
    GEMM_I8 = "gemm_i8"
    DEQUANTIZE = "dequantize"
    REFERENCE = "reference"


class Layer(NamedTuple):
    """A product: its weight, result `[rows, N]`, the rotation of x, and how it is computed."""

    weight: Weight
    y: Tensor
    rotation: Rotation | None
    kernel: MatmulKernel

    def input_group(self) -> int:
        """Returns the channels of a group in the slot order of x: all channels, unless groups are padded."""
        s = self.weight.shape
        return s.in_features if self.kernel is MatmulKernel.DEQUANTIZE or s.in_channel_order else s.group_size


def checked_weight(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None,
    out_features: int, in_features: int, bits: int, group_size: int,
) -> Weight:  # fmt: skip
    """Checks the weight in an argument list, whose tensors must be on the device of x. Raises as `ops.linear` does."""
    stored = reference.Weight(packed, scale, zero, out_features, in_features, bits, group_size, CUDA_LAYOUT)
    checks.check_cuda_layout(x, stored)
    if bias is not None:
        checks.check_tensor("bias", bias, (out_features,), checks.ACTIVATION_DTYPES, x)
        bias = (bias.float() if bias.dtype == torch.float64 else bias).contiguous()
    shape = Shape.of(out_features, in_features, group_size, bits)
    tensors = (aligned(packed), aligned(scale), None if zero is None else aligned(zero))
    return Weight(shape, *tensors, bias)


def choose_kernel(weight: Weight, rows: int, rounded: bool, rotated: bool, tuning: interface.Tuning) -> MatmulKernel:
    """Chooses the kernel for a number of rows on a GPU.

    Rotated values that are not rounded to integers would lose more, or overflow, in 16 bits.
    """
    if (rotated and not rounded) or (rounded and rows > MAX_QUANTIZED_ROWS):
        return MatmulKernel.REFERENCE
    if weight.scale.dtype not in SUFFIX:
        return MatmulKernel.DEQUANTIZE
    if rows <= tuning.max_gemv_rows:
        return MatmulKernel.GEMV
    most = tuning.max_gemm_i8_rows if rounded else tuning.max_gemm_f16_rows
    if rows > most or interface.gemm_k_steps(weight.shape, rows) >= interface.MAX_STEPS // interface.MAX_LAYERS:
        return MatmulKernel.DEQUANTIZE
    return MatmulKernel.GEMM_I8 if rounded else MatmulKernel.GEMM_F16


def pointer(tensor: Tensor | None) -> int | None:
    """Returns the address of a tensor's first element; None for None."""
    return None if tensor is None else tensor.data_ptr()


def aligned(tensor: Tensor) -> Tensor:
    """Returns the tensor contiguous, and at an address where kernels can read 16 bytes at once."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor
