"""`qaig::linear`, `linear_many` and `dequantize` on CUDA tensors, by kernels that NVRTC made.

What `csrc/ops_cuda.cpp` does in the compiled library, done in Python, with the same checks and the same choices: few
tokens go to the decode kernels, 16 at a time, and many to cuBLAS, by a weight that is dequantized some rows at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn import checks, ops, reference
from ..nn.hadamard import Rotation
from ..nn.packing import CUDA_ORDER
from . import interface
from .driver import Device, Driver
from .interface import TYPES, Shape

_MOST_GRID_Y = 65_535
_LEAST_COUNTERS = 4096
_SUFFIX = {torch.float16: "f16", torch.bfloat16: "bf16"}


class Weight(NamedTuple):
    """A packed weight in CUDA order, checked."""

    shape: Shape
    words: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None = None


class Layer(NamedTuple):
    """A product with few rows: its weight, result `[rows, N]`, and the rotation of x."""

    weight: Weight
    y: Tensor
    rotation: Rotation | None

    def order(self) -> tuple[int, Rotation | None]:
        """Equal for layers that read x alike: in the same order of slots, rotated alike."""
        s = self.weight.shape
        return 0 if s.in_channel_order else s.group_size, self.rotation


class Operators:
    """The operators.

    Args:
        driver (`Driver`): launches.
        device_of (`Callable`): the `Device` of a `torch.device`.
    """

    def __init__(self, driver: Driver, device_of: Callable[[torch.device], Device] = Device.of) -> None:
        self._driver = driver
        self._device_of = device_of
        self._devices: dict[torch.device, Device] = {}

    def linear(
        self, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None,
        rotation_block: int, rotation_seed: int, out_features: int, bits: int, group_size: int, activation_bits: int,
        layout: int,
    ) -> Tensor:  # fmt: skip
        """`ops.linear_reference` says what; raises as it does."""
        tensors, rotation = ([packed], [scale], [zero], [bias]), ([rotation_block], [rotation_seed])
        return self.linear_many(x, *tensors, *rotation, [out_features], [bits], [group_size], activation_bits, layout)[
            0
        ]

    def linear_many(
        self, x: Tensor, packed: list[Tensor], scale: list[Tensor], zero: list[Tensor | None],
        bias: list[Tensor | None], rotation_block: list[int], rotation_seed: list[int], out_features: list[int],
        bits: list[int], group_size: list[int], activation_bits: int, layout: int,
    ) -> list[Tensor]:  # fmt: skip
        """`ops.linear_many` says what; raises as it does."""
        lists = (packed, scale, zero, bias, out_features, bits, group_size)
        checks.check_activation("x", x)
        checks.check_activation_bits(activation_bits)
        checks.check_lists(*lists, rotation_block, rotation_seed)
        for block, seed in zip(rotation_block, rotation_seed):
            checks.checked_rotation(block, seed, x.shape[-1])

        def by_reference(i: int) -> Tensor:
            tensors, sizes = (packed[i], scale[i], zero[i], bias[i]), (out_features[i], bits[i], group_size[i])
            rotation = rotation_block[i], rotation_seed[i]
            return ops.linear_reference(x, *tensors, *rotation, *sizes, activation_bits, layout)

        if layout != CUDA_ORDER or x.dtype not in _SUFFIX:
            return [by_reference(i) for i in range(len(packed))]
        weights = [  # everything is checked before anything is computed
            self._weight(x, p, s, z, b, n, x.shape[-1], width, g)
            for p, s, z, b, n, width, g in zip(*lists, strict=True)
        ]
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        rows, device = flat.shape[0], self._device(x.device)
        tuning = interface.tuning_for(device.capability)
        results, few = [], []
        for i, weight in enumerate(weights):
            decodes = rows <= tuning.most_decode_rows and weight.scale.dtype in _SUFFIX
            # Rotated values that are not rounded to integers would lose more, or overflow, in 16 bits.
            has_kernel = decodes if activation_bits == 8 else rotation_block[i] == 0
            if rows > 0 and not has_kernel:
                results.append(by_reference(i))
                continue
            y = x.new_empty(*x.shape[:-1], weight.shape.out_features)
            results.append(y)
            if rows == 0:
                continue
            if decodes:
                rotation = checks.checked_rotation(rotation_block[i], rotation_seed[i], x.shape[-1])
                few.append(Layer(weight, y.view(rows, -1), rotation))
            else:
                self._unpack_and_multiply(flat, weight, y.view(rows, -1), tuning.chunk_bytes)
        if few:
            self._decode(flat, few, activation_bits == 8, device)
        return results

    def dequantize(
        self, packed: Tensor, scale: Tensor, zero: Tensor | None, out_features: int, in_features: int, bits: int,
        group_size: int, layout: int, start: int, stop: int,
    ) -> Tensor:  # fmt: skip
        """Rows [start, stop) of a weight in CUDA order, float32.

        Raises:
            ValueError: if a tensor does not have the shape and dtype that the sizes ask for, or rows are not there.
            NotImplementedError: for another layout.
        """
        if layout != CUDA_ORDER:
            raise NotImplementedError(f"layout={layout} is not the CUDA order")
        weight = self._weight(packed, packed, scale, zero, None, out_features, in_features, bits, group_size)
        if not 0 <= start <= stop <= out_features:
            raise ValueError(f"rows {start} to {stop} are not within the {out_features} of the weight")
        out = packed.new_empty(stop - start, in_features, dtype=torch.float32)
        self._dequantize(weight, start, stop, out)
        return out

    def _weight(
        self, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None,
        out_features: int, in_features: int, bits: int, group_size: int,
    ) -> Weight:  # fmt: skip
        stored = reference.Weight(packed, scale, zero, out_features, in_features, bits, group_size, CUDA_ORDER)
        checks.check_cuda_order(x, stored)
        if bias is not None:
            checks.check_tensor("bias", bias, (out_features,), checks.ACTIVATION_DTYPES, x)
            bias = (bias.float() if bias.dtype == torch.float64 else bias).contiguous()
        shape = Shape.of(out_features, in_features, group_size, bits)
        tensors = (_aligned(packed), _aligned(scale), None if zero is None else _aligned(zero))
        return Weight(shape, *tensors, bias)

    def _decode(self, x: Tensor, layers: list[Layer], rounded: bool, device: Device) -> None:
        """All layers in as few launches as possible, for each 16 rows of x."""
        inputs: dict[tuple[int, Rotation | None], tuple[Tensor, Tensor | None]] = {}
        for layer in layers:
            key = layer.order()
            if key not in inputs:
                inputs[key] = self._input(x, layer, rounded, device)
        for row in range(0, x.shape[0], interface.MOST_ROWS):
            rows = slice(row, min(row + interface.MOST_ROWS, x.shape[0]))
            for first in range(0, len(layers), interface.MOST_LAYERS):
                self._launch_decode(layers[first : first + interface.MOST_LAYERS], inputs, rows, x, device)

    def _launch_decode(
        self, layers: list[Layer], inputs: dict[tuple[int, Rotation | None], tuple[Tensor, Tensor | None]],
        rows: slice, x: Tensor, device: Device,
    ) -> None:  # fmt: skip
        argument = interface.Decode(rows=rows.stop - rows.start, layer_count=len(layers))
        items = counters = 0
        for to, layer in zip(argument.layers, layers):
            weight, y = layer.weight, layer.y
            s, (slots, token_scale) = weight.shape, inputs[layer.order()]
            to.words, to.scale, to.zero = weight.words.data_ptr(), weight.scale.data_ptr(), _pointer(weight.zero)
            to.x, to.y = slots[rows].data_ptr(), y[rows].data_ptr()
            to.token_scale = None if token_scale is None else token_scale[rows].data_ptr()
            if weight.bias is not None:
                to.bias, to.bias_type = weight.bias.data_ptr(), TYPES[weight.bias.dtype]
            to.x_stride = to.x_slots = slots.shape[1]
            to.out_features, to.in_features, to.group_size = s.out_features, s.in_features, s.group_size
            to.bits, to.scale_type = s.bits, TYPES[weight.scale.dtype]
            items += s.items
            counters += s.row_blocks
        widths = {layer.weight.shape.bits for layer in layers}
        bits = widths.pop() if len(widths) == 1 else interface.MIXED
        columns, grid = interface.decode_columns(argument.rows), interface.decode_grid(items, device.processors)
        partials = x.new_empty(interface.decode_partial_bytes(grid, columns) // 4, dtype=torch.float32)
        argument.partials = partials.data_ptr()
        argument.counters = self._driver.counters(device, counters)
        if argument.counters is None:
            zeros = x.new_zeros(counters, dtype=torch.int32)
            argument.counters = zeros.data_ptr()
        name = f"qaig_decode_{f'w{bits}' if bits else 'mixed'}_{_SUFFIX[x.dtype]}_m{columns}"
        shared = interface.decode_shared_bytes(bits, columns)
        self._driver.launch(name, argument, (grid, 1), interface.DECODE_THREADS, shared, device)

    def _input(self, x: Tensor, layer: Layer, rounded: bool, device: Device) -> tuple[Tensor, Tensor | None]:
        """x as the kernels read it, and each token's scale if it is rounded to 8 bits."""
        s = layer.weight.shape
        block, seed = layer.rotation or (0, 0)
        x = _aligned(x) if block else x
        if s.in_channel_order and s.in_features % 8 == 0 and not rounded:
            return _aligned(x), None
        rows, in_features = x.shape
        order = Shape(1, in_features, in_features if s.in_channel_order else s.group_size, 2)
        out = x.new_empty(rows, order.slots)
        token_scale = x.new_empty(rows, dtype=torch.float32) if rounded else None
        argument = interface.Arrange(
            x.data_ptr(), out.data_ptr(), _pointer(token_scale), seed, block, rows, in_features, order.group_size,
            order.slots,
        )  # fmt: skip
        name = f"qaig_arrange_{_SUFFIX[x.dtype]}"
        self._driver.launch(name, argument, (rows, 1), interface.ARRANGE_THREADS, 0, device)
        return out, token_scale

    def _unpack_and_multiply(self, x: Tensor, weight: Weight, y: Tensor, chunk_bytes: int) -> None:
        """y = x W' + bias by torch, with a chunk of the weight at a time, in one piece of memory."""
        s, block = weight.shape, interface.BLOCK_ROWS
        fitting = chunk_bytes // (s.in_features * x.element_size()) // block * block
        step = min(s.out_features, max(block, fitting))
        memory = x.new_empty(step, s.in_features)
        bias = None if weight.bias is None else weight.bias.to(x.dtype)
        for start in range(0, s.out_features, step):
            stop = min(start + step, s.out_features)
            rows = memory[: stop - start]
            self._dequantize(weight, start, stop, rows)
            if bias is None:
                torch.mm(x, rows.t(), out=y[:, start:stop])
            else:
                torch.addmm(bias[start:stop], x, rows.t(), out=y[:, start:stop])

    def _dequantize(self, weight: Weight, start: int, stop: int, out: Tensor) -> None:
        """Rows [start, stop) of the weight in the dtype of `out`."""
        s, device = weight.shape, self._device(weight.words.device)
        most = _MOST_GRID_Y * interface.BLOCK_ROWS
        for first in range(start, stop, most):
            last = min(first + most, stop)
            argument = interface.Dequantize(
                weight.words.data_ptr(), weight.scale.data_ptr(), _pointer(weight.zero),
                out[first - start :].data_ptr(), first, last, s.out_features, s.in_features, s.group_size, s.bits,
                TYPES[weight.scale.dtype], TYPES[out.dtype],
            )  # fmt: skip
            grid = interface.dequantize_grid(s, first, last)
            name = f"qaig_dequantize_w{s.bits}"
            self._driver.launch(name, argument, grid, interface.DEQUANTIZE_THREADS, 0, device)

    def _device(self, device: torch.device) -> Device:
        found = self._devices.get(device)
        if found is None:
            found = self._devices[device] = self._device_of(device)
        return found


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, and where kernels can read 16 bytes at once."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor
