"""Makes the inputs that kernels read: x itself, or x in slot order, rotated and quantized by a kernel."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...formats.hadamard import Rotation
from . import interface
from .driver import Device, Driver
from .interface import Shape
from .layer import SUFFIX, Layer, MatmulKernel, aligned, pointer


class Input(NamedTuple):
    """x as arguments.h describes it, and each token's scale if it is rounded to 8 bits."""

    x: Tensor
    token_scale: Tensor | None
    stride: int


class Inputs:
    """Makes x `[rows, K]` for each layer, once for all layers that read it alike.

    Args:
        driver: launches kernels.
        x: contiguous.
        rounded: whether to round it to 8 bits.
        device: of x.
    """

    def __init__(self, driver: Driver, x: Tensor, rounded: bool, device: Device) -> None:
        self.rounded = rounded
        self._driver, self._x, self._device = driver, x, device
        self._inputs: dict[tuple[int, Rotation | None, bool], Input] = {}

    def get(self, layer: Layer) -> Input:
        """Returns the input that a layer's kernel reads."""
        key = (layer.input_group(), layer.rotation, layer.kernel is MatmulKernel.GEMM_I8)
        if key not in self._inputs:
            self._inputs[key] = self._make(*key)
        return self._inputs[key]

    def _make(self, group: int, rotation: Rotation | None, as_bytes: bool) -> Input:
        block, seed = rotation or (0, 0)
        x = aligned(self._x) if block else self._x
        rows, in_features = x.shape
        order = Shape(1, in_features, group, 2)
        if order.in_channel_order and in_features % 8 == 0 and not self.rounded:
            return Input(aligned(x), None, in_features)
        out = x.new_empty(rows, order.slots)
        token_scale = x.new_empty(rows, dtype=torch.float32) if self.rounded else None
        argument = interface.QuantizeActivations(
            x.data_ptr(), out.data_ptr(), pointer(token_scale), seed, block, rows, in_features, group, order.slots,
            as_bytes,
        )  # fmt: skip
        name = f"qaig_quantize_activations_{SUFFIX[x.dtype]}"
        self._driver.launch(name, argument, (rows, 1), interface.QUANTIZE_THREADS, 0, self._device)
        return Input(out, token_scale, (2 if as_bytes else 1) * order.slots)
