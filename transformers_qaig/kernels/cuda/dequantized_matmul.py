"""Products by torch, with the weight dequantized some rows at a time."""

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
    """y of the layer, with a chunk of the weight at a time, in one piece of memory.

    Rounded to 8 bits, x are integers times a power of two, exact in 16 bits, and only their products are rounded to
    those.
    """
    weight, y = layer.weight, layer.y
    s, block = weight.shape, interface.BLOCK_ROWS
    fitting = chunk_bytes // (s.in_features * x.element_size()) // block * block
    step = min(s.out_features, max(block, fitting))
    memory = x.new_empty(step, s.in_features)
    bias, token_scale = weight.bias, None
    if inputs.rounded:
        slots, token_scale, _ = inputs.of(layer)
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
    """Rows [start, stop) of the weight in the dtype of `out`."""
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
