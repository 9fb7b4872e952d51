"""Plans and launches the products by kernels that read packed words."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import interface
from .activations import Inputs
from .driver import Device, Driver
from .interface import TYPES, Shape
from .layer import SUFFIX, Layer, MatmulKernel, pointer


class LaunchPlan(NamedTuple):
    """How one launch of a kernel that reads packed words is laid out."""

    kernel: str  # with a place for the type of x
    grid: int
    threads: int
    shared_bytes: int
    workspace_bytes: int
    semaphores: int


def packed_matmul(driver: Driver, x: Tensor, layers: list[Layer], inputs: Inputs, device: Device) -> None:
    """Multiplies all layers in as few launches as possible.

    gemv takes 16 rows of x at a time, and layers of several widths. A gemm takes all rows, and layers of one width.
    """
    together: dict[tuple[MatmulKernel, int], list[Layer]] = {}
    for layer in layers:
        bits = interface.MIXED_BITS if layer.kernel is MatmulKernel.GEMV else layer.weight.shape.bits
        together.setdefault((layer.kernel, bits), []).append(layer)
    for (kernel, _), group in together.items():
        step = interface.MAX_GEMV_ROWS if kernel is MatmulKernel.GEMV else x.shape[0]
        for row in range(0, x.shape[0], step):
            rows = slice(row, min(row + step, x.shape[0]))
            for first in range(0, len(group), interface.MAX_LAYERS):
                _launch_packed_matmul(driver, group[first : first + interface.MAX_LAYERS], inputs, rows, x, device)


def _launch_packed_matmul(
    driver: Driver, layers: list[Layer], inputs: Inputs, rows: slice, x: Tensor, device: Device
) -> None:
    argument = interface.Matmul(rows=rows.stop - rows.start, layer_count=len(layers))
    for to, layer in zip(argument.layers, layers):
        weight, y, read = layer.weight, layer.y, inputs.get(layer)
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
    workspace = x.new_empty(plan.workspace_bytes // 4, dtype=torch.float32)
    argument.workspace = workspace.data_ptr()
    argument.semaphores = driver.semaphores(device, plan.semaphores)
    if argument.semaphores is None:
        zeros = x.new_zeros(plan.semaphores, dtype=torch.int32)
        argument.semaphores = zeros.data_ptr()
    name = plan.kernel.format(SUFFIX[x.dtype])
    driver.launch(name, argument, (plan.grid, 1), plan.threads, plan.shared_bytes, device)


def _plan(layers: list[Layer], rows: int, device: Device) -> LaunchPlan:
    shapes, kernel = [layer.weight.shape for layer in layers], layers[0].kernel
    return _plan_gemv(shapes, rows, device) if kernel is MatmulKernel.GEMV else _plan_gemm(shapes, rows, kernel, device)


def _plan_gemv(shapes: list[Shape], rows: int, device: Device) -> LaunchPlan:
    widths = {s.bits for s in shapes}
    bits = widths.pop() if len(widths) == 1 else interface.MIXED_BITS
    columns = interface.gemv_columns(rows)
    grid = interface.gemv_grid(sum(s.work_items for s in shapes), device.processors, columns)
    return LaunchPlan(
        f"qaig_gemv_{f'w{bits}' if bits else 'mixed'}_{{}}_m{columns}",
        grid,
        interface.GEMV_THREADS,
        interface.gemv_shared_bytes(bits, columns),
        interface.gemv_workspace_bytes(grid, columns),
        sum(s.row_blocks for s in shapes),
    )


def _plan_gemm(shapes: list[Shape], rows: int, kernel: MatmulKernel, device: Device) -> LaunchPlan:
    bits = shapes[0].bits
    grid = interface.gemm_grid(sum(interface.gemm_k_steps(s, rows) for s in shapes), device.processors)
    shared_bytes = interface.gemm_i8_shared_bytes if kernel is MatmulKernel.GEMM_I8 else interface.gemm_f16_shared_bytes
    return LaunchPlan(
        f"qaig_{kernel.value}_w{bits}_{{}}",
        grid,
        interface.GEMM_THREADS,
        shared_bytes(bits),
        interface.gemm_workspace_bytes(grid),
        interface.gemm_semaphores(sum(interface.gemm_output_tiles(s, rows) for s in shapes)),
    )
