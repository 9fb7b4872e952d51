"""Multiplies with torch, with the weight dequantized some rows at a time."""

import torch
from torch import Tensor

from . import interface
from .activations import Inputs
from .driver import Device, Driver
from .interface import TYPES
from .layer import Layer, Weight, pointer


def dequantized_matmul(
    driver: Driver, x: Tensor, layer: Layer, inputs: Inputs, chunk_bytes: int, device: Device
) -> None:
    """Computes the product of one layer, with one chunk of the weight in memory at a time.

    If x is rounded to 8 bits, its values are integers times a power of two. They are exact in 16 bits, and only their
    products are rounded to 16 bits.

    Args:
        driver: launches kernels.
        x: the input, `[rows, K]`.
        layer: weight, result and rotation.
        inputs: makes x as the layer reads it.
        chunk_bytes: size of the memory for the dequantized rows.
        device: of x.
    """
    weight, y = layer.weight, layer.y
    s, block = weight.shape, interface.BLOCK_ROWS
    fitting = chunk_bytes // (s.in_features * x.element_size()) // block * block
    step = min(s.out_features, max(block, fitting))
    memory = x.new_empty(step, s.in_features)
    bias, token_scale = weight.bias, None
    if inputs.rounded:
        slots, token_scale, _ = inputs.get(layer)
        x = slots[:, : s.in_features]
    elif bias is not None:
        bias = bias.to(x.dtype)
    for start in range(0, s.out_features, step):
        stop = min(start + step, s.out_features)
        rows = memory[: stop - start]
        dequantize_rows(driver, weight, start, stop, rows, device)
        if token_scale is not None:
            products, part = torch.mm(x, rows.t()), y[:, start:stop]
            if bias is None:  # in float32, and rounded as it is stored
                torch.mul(products, token_scale[:, None], out=part)
            else:
                torch.addcmul(bias[start:stop].float(), products, token_scale[:, None], out=part)
        elif bias is None:
            torch.mm(x, rows.t(), out=y[:, start:stop])
        else:
            torch.addmm(bias[start:stop], x, rows.t(), out=y[:, start:stop])


def dequantize_rows(driver: Driver, weight: Weight, start: int, stop: int, out: Tensor, device: Device) -> None:
    """Writes rows [start, stop) of the weight into `out`, in its dtype."""
    s, first = weight.shape, start
    while first < stop:
        last = interface.dequantize_stop(first, stop)
        argument = interface.Dequantize(
            weight.words.data_ptr(), weight.scale.data_ptr(), pointer(weight.zero),
            out[first - start :].data_ptr(), first, last, s.out_features, s.in_features, s.group_size, s.bits,
            TYPES[weight.scale.dtype], TYPES[out.dtype],
        )  # fmt: skip
        grid = interface.dequantize_grid(s, first, last)
        name = f"qaig_dequantize_w{s.bits}"
        driver.launch(name, argument, grid, interface.DEQUANTIZE_THREADS, 0, device)
        first = last
