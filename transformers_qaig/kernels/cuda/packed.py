"""Products by kernels that read packed words: how they are planned and launched."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import interface
from .activations import Inputs
from .driver import Device, Driver
from .interface import TYPES, Shape
from .layer import SUFFIX, Layer, Way, pointer


class Plan(NamedTuple):
    """A launch of kernels that read packed words."""

    kernel: str  # with a place for the type of x
    grid: int
    threads: int
    shared_bytes: int
    partial_bytes: int
    counters: int


def multiply_packed(driver: Driver, x: Tensor, layers: list[Layer], inputs: Inputs, device: Device) -> None:
    """All layers in as few launches as possible: by the decode kernels for each 16 rows of x, or by the fused or
    the integer kernels, which take all rows at once, but layers of one width.
    """
    together: dict[tuple[Way, int], list[Layer]] = {}
    for layer in layers:
        bits = interface.MIXED if layer.way is Way.DECODE else layer.weight.shape.bits
        together.setdefault((layer.way, bits), []).append(layer)
    for (way, _), group in together.items():
        step = interface.MOST_ROWS if way is Way.DECODE else x.shape[0]
        for row in range(0, x.shape[0], step):
            rows = slice(row, min(row + step, x.shape[0]))
            for first in range(0, len(group), interface.MOST_LAYERS):
                _launch_product(driver, group[first : first + interface.MOST_LAYERS], inputs, rows, x, device)


def _launch_product(
    driver: Driver, layers: list[Layer], inputs: Inputs, rows: slice, x: Tensor, device: Device
) -> None:
    argument = interface.Decode(rows=rows.stop - rows.start, layer_count=len(layers))
    for to, layer in zip(argument.layers, layers):
        weight, y, read = layer.weight, layer.y, inputs.of(layer)
        s = weight.shape
        to.words, to.scale, to.zero = weight.words.data_ptr(), weight.scale.data_ptr(), pointer(weight.zero)
        to.x, to.y = read.x[rows].data_ptr(), y[rows].data_ptr()
        to.token_scale = None if read.token_scale is None else read.token_scale[rows].data_ptr()
        if weight.bias is not None:
            to.bias, to.bias_type = weight.bias.data_ptr(), TYPES[weight.bias.dtype]
        to.x_stride, to.x_slots = read.stride, read.x.shape[1]
        to.out_features, to.in_features, to.group_size = s.out_features, s.in_features, s.group_size
        to.bits, to.scale_type = s.bits, TYPES[weight.scale.dtype]
    plan = _plan(layers, argument.rows, device)
    partials = x.new_empty(plan.partial_bytes // 4, dtype=torch.float32)
    argument.partials = partials.data_ptr()
    argument.counters = driver.counters(device, plan.counters)
    if argument.counters is None:
        zeros = x.new_zeros(plan.counters, dtype=torch.int32)
        argument.counters = zeros.data_ptr()
    name = plan.kernel.format(SUFFIX[x.dtype])
    driver.launch(name, argument, (plan.grid, 1), plan.threads, plan.shared_bytes, device)


def _plan(layers: list[Layer], rows: int, device: Device) -> Plan:
    shapes, way = [layer.weight.shape for layer in layers], layers[0].way
    return _plan_decode(shapes, rows, device) if way is Way.DECODE else _plan_tiled(shapes, rows, way, device)


def _plan_decode(shapes: list[Shape], rows: int, device: Device) -> Plan:
    widths = {s.bits for s in shapes}
    bits = widths.pop() if len(widths) == 1 else interface.MIXED
    columns = interface.decode_columns(rows)
    grid = interface.decode_grid(sum(s.items for s in shapes), device.processors, columns)
    return Plan(
        f"qaig_decode_{f'w{bits}' if bits else 'mixed'}_{{}}_m{columns}",
        grid,
        interface.DECODE_THREADS,
        interface.decode_shared_bytes(bits, columns),
        interface.decode_partial_bytes(grid, columns),
        sum(s.row_blocks for s in shapes),
    )


def _plan_tiled(shapes: list[Shape], rows: int, way: Way, device: Device) -> Plan:
    bits = shapes[0].bits
    grid = interface.tiled_grid(sum(interface.tiled_steps(s, rows) for s in shapes), device.processors)
    shared_bytes = interface.integer_shared_bytes if way is Way.INTEGER else interface.fused_shared_bytes
    return Plan(
        f"qaig_{way.value}_w{bits}_{{}}",
        grid,
        interface.TILED_THREADS,
        shared_bytes(bits),
        interface.tiled_partial_bytes(grid),
        interface.tiled_counters(sum(interface.tiled_outputs(s, rows) for s in shapes)),
    )
