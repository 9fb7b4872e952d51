"""`qaig::linear`, `linear_many` and `dequantize` on CUDA tensors, by kernels that NVRTC made.

What `csrc/ops_cuda.cpp` does in the compiled library, done in Python, with the same checks and the same choices: few
tokens go to the decode kernels, 16 at a time, some hundreds to the fused ones, or those of integers if they are rounded
to 8 bits, and more to cuBLAS, by a weight that is dequantized some rows at a time.
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn import checks, ops, reference
from ..nn.hadamard import Rotation
from ..nn.packing import CUDA_ORDER
from . import interface
from .driver import Device, Driver
from .interface import TYPES, Shape

_MOST_ROUNDED_ROWS = 2**31 - 1  # each is a block of a launch
_SUFFIX = {torch.float16: "f16", torch.bfloat16: "bf16"}


class Weight(NamedTuple):
    """A packed weight in CUDA order, checked."""

    shape: Shape
    words: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None = None


class Way(Enum):
    """How a layer is multiplied: by the kernels that read packed words, by torch with the weight unpacked, or by the
    reference.
    """

    DECODE = "decode"
    FUSED = "fused"
    INTEGER = "integer"
    DENSE = "dense"
    REFERENCE = "reference"


class Layer(NamedTuple):
    """A product: its weight, result `[rows, N]`, the rotation of x, and how it is computed."""

    weight: Weight
    y: Tensor
    rotation: Rotation | None
    way: Way

    def input_group(self) -> int:
        """Channels of a group in the order of slots that x is to have: all of them, unless groups are padded."""
        s = self.weight.shape
        return s.in_features if self.way is Way.DENSE or s.in_channel_order else s.group_size


class Input(NamedTuple):
    """x as kernels.h describes it, and each token's scale if it is rounded to 8 bits."""

    x: Tensor
    token_scale: Tensor | None
    stride: int


class Plan(NamedTuple):
    """A launch of kernels that read packed words."""

    kernel: str  # with a place for the type of x
    grid: int
    threads: int
    shared_bytes: int
    partial_bytes: int
    counters: int


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
        tuning, rounded = interface.tuning_for(device.capability), activation_bits == 8
        inputs = Inputs(self._driver, flat, rounded, device)
        results, layers = [], []
        for i, weight in enumerate(weights):
            way = _way(weight, rows, rounded, rotation_block[i] != 0, tuning)
            if rows > 0 and way is Way.REFERENCE:
                results.append(by_reference(i))
                continue
            y = x.new_empty(*x.shape[:-1], weight.shape.out_features)
            results.append(y)
            if rows == 0:
                continue
            rotation = checks.checked_rotation(rotation_block[i], rotation_seed[i], x.shape[-1])
            layer = Layer(weight, y.view(rows, -1), rotation, way)
            if way is Way.DENSE:
                self._unpack_and_multiply(flat, layer, inputs, tuning.chunk_bytes)
            else:
                layers.append(layer)
        self._multiply_packed(flat, layers, inputs, device)
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

    def _multiply_packed(self, x: Tensor, layers: list[Layer], inputs: "Inputs", device: Device) -> None:
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
                    self._launch_product(group[first : first + interface.MOST_LAYERS], inputs, rows, x, device)

    def _launch_product(self, layers: list[Layer], inputs: "Inputs", rows: slice, x: Tensor, device: Device) -> None:
        argument = interface.Decode(rows=rows.stop - rows.start, layer_count=len(layers))
        for to, layer in zip(argument.layers, layers):
            weight, y, read = layer.weight, layer.y, inputs.of(layer)
            s = weight.shape
            to.words, to.scale, to.zero = weight.words.data_ptr(), weight.scale.data_ptr(), _pointer(weight.zero)
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
        argument.counters = self._driver.counters(device, plan.counters)
        if argument.counters is None:
            zeros = x.new_zeros(plan.counters, dtype=torch.int32)
            argument.counters = zeros.data_ptr()
        name = plan.kernel.format(_SUFFIX[x.dtype])
        self._driver.launch(name, argument, (plan.grid, 1), plan.threads, plan.shared_bytes, device)

    def _unpack_and_multiply(self, x: Tensor, layer: Layer, inputs: "Inputs", chunk_bytes: int) -> None:
        """By torch, with a chunk of the weight at a time, in one piece of memory.

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
            self._dequantize(weight, start, stop, rows)
            if token_scale is not None:
                products = torch.mm(x, rows.t()) * token_scale[:, None]
                y[:, start:stop] = products if bias is None else products + bias[start:stop].float()
            elif bias is None:
                torch.mm(x, rows.t(), out=y[:, start:stop])
            else:
                torch.addmm(bias[start:stop], x, rows.t(), out=y[:, start:stop])

    def _dequantize(self, weight: Weight, start: int, stop: int, out: Tensor) -> None:
        """Rows [start, stop) of the weight in the dtype of `out`."""
        s, device = weight.shape, self._device(weight.words.device)
        first = start
        while first < stop:
            last = interface.dequantize_stop(first, stop)
            argument = interface.Dequantize(
                weight.words.data_ptr(), weight.scale.data_ptr(), _pointer(weight.zero),
                out[first - start :].data_ptr(), first, last, s.out_features, s.in_features, s.group_size, s.bits,
                TYPES[weight.scale.dtype], TYPES[out.dtype],
            )  # fmt: skip
            grid = interface.dequantize_grid(s, first, last)
            name = f"qaig_dequantize_w{s.bits}"
            self._driver.launch(name, argument, grid, interface.DEQUANTIZE_THREADS, 0, device)
            first = last

    def _device(self, device: torch.device) -> Device:
        found = self._devices.get(device)
        if found is None:
            found = self._devices[device] = self._device_of(device)
        return found


class Inputs:
    """x `[rows, K]` for each layer, made once for all that read it alike.

    Args:
        driver (`Driver`): launches.
        x (`Tensor`): contiguous.
        rounded (`bool`): to 8 bits.
        device (`Device`): of x.
    """

    def __init__(self, driver: Driver, x: Tensor, rounded: bool, device: Device) -> None:
        self.rounded = rounded
        self._driver, self._x, self._device = driver, x, device
        self._inputs: dict[tuple[int, Rotation | None, bool], Input] = {}

    def of(self, layer: Layer) -> Input:
        key = (layer.input_group(), layer.rotation, layer.way is Way.INTEGER)
        if key not in self._inputs:
            self._inputs[key] = self._make(*key)
        return self._inputs[key]

    def _make(self, group: int, rotation: Rotation | None, as_bytes: bool) -> Input:
        block, seed = rotation or (0, 0)
        x = _aligned(self._x) if block else self._x
        rows, in_features = x.shape
        order = Shape(1, in_features, group, 2)
        if order.in_channel_order and in_features % 8 == 0 and not self.rounded:
            return Input(_aligned(x), None, in_features)
        out = x.new_empty(rows, order.slots)
        token_scale = x.new_empty(rows, dtype=torch.float32) if self.rounded else None
        argument = interface.Arrange(
            x.data_ptr(), out.data_ptr(), _pointer(token_scale), seed, block, rows, in_features, group, order.slots,
            as_bytes,
        )  # fmt: skip
        name = f"qaig_arrange_{_SUFFIX[x.dtype]}"
        self._driver.launch(name, argument, (rows, 1), interface.ARRANGE_THREADS, 0, self._device)
        return Input(out, token_scale, (2 if as_bytes else 1) * order.slots)


def _way(weight: Weight, rows: int, rounded: bool, rotated: bool, tuning: interface.Tuning) -> Way:
    """Rotated values that are not rounded to integers would lose more, or overflow, in 16 bits."""
    if (rotated and not rounded) or (rounded and rows > _MOST_ROUNDED_ROWS):
        return Way.REFERENCE
    if weight.scale.dtype not in _SUFFIX:
        return Way.DENSE
    if rows <= tuning.most_decode_rows:
        return Way.DECODE
    most = tuning.most_integer_rows if rounded else tuning.most_fused_rows
    if rows > most or interface.tiled_steps(weight.shape, rows) >= interface.MOST_STEPS // interface.MOST_LAYERS:
        return Way.DENSE
    return Way.INTEGER if rounded else Way.FUSED


def _plan(layers: list[Layer], rows: int, device: Device) -> Plan:
    shapes, way = [layer.weight.shape for layer in layers], layers[0].way
    return _plan_decode(shapes, rows, device) if way is Way.DECODE else _plan_tiled(shapes, rows, way, device)


def _plan_decode(shapes: list[Shape], rows: int, device: Device) -> Plan:
    widths = {s.bits for s in shapes}
    bits = widths.pop() if len(widths) == 1 else interface.MIXED
    columns = interface.decode_columns(rows)
    grid = interface.decode_grid(sum(s.items for s in shapes), device.processors)
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


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, and where kernels can read 16 bytes at once."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor
