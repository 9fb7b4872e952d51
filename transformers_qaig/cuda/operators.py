"""`qaig::linear`, `linear_many` and `dequantize` on CUDA tensors, by kernels that NVRTC made.

What `csrc/ops_cuda.cpp` does in the compiled library, done in Python, with the same checks: up to 16 tokens go to the
decode kernels, more of them to cuBLAS, by a weight that is dequantized a few rows at a time.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import ops, reference
from ..nn.packing import CUDA_ORDER
from . import interface
from .driver import Device, Driver
from .interface import TYPES, Shape

_CHUNK_BYTES = 24 << 20  # of a dequantized weight: stays in the L2 cache of the larger GPUs
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


class Operators:
    """The operators, with the buffers their launches share.

    Args:
        driver (`Driver`): launches.
        device_of (`Callable`): the `Device` of a `torch.device`.
    """

    def __init__(self, driver: Driver, device_of: Callable[[torch.device], Device] = Device.of) -> None:
        self._driver = driver
        self._device_of = device_of
        self._devices: dict[torch.device, Device] = {}
        self._lock = threading.Lock()
        # Zeros between launches, by device, stream and capture: launches that may overlap in time share none.
        self._counters: dict[tuple[int, int, int], Tensor] = {}

    def linear(
        self, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None,
        signs: Tensor | None, out_features: int, bits: int, group_size: int, activation_bits: int, layout: int,
    ) -> Tensor:  # fmt: skip
        """`ops.linear_reference` says what; raises as it does."""
        if layout != CUDA_ORDER or x.dtype == torch.float64:
            return ops.linear_reference(
                x, packed, scale, zero, bias, signs, out_features, bits, group_size, activation_bits, layout
            )
        ops.check_options(signs, activation_bits)
        ops.check_activation("x", x)
        weight = self._weight(x, packed, scale, zero, bias, out_features, x.shape[-1], bits, group_size)
        return self._multiply(x, [weight], activation_bits)[0]

    def linear_many(
        self, x: Tensor, packed: list[Tensor], scale: list[Tensor], zero: list[Tensor | None],
        bias: list[Tensor | None], out_features: list[int], bits: list[int], group_size: list[int],
        activation_bits: int, layout: int,
    ) -> list[Tensor]:  # fmt: skip
        """`ops.linear_many` says what; raises as it does."""
        lists = (packed, scale, zero, bias, out_features, bits, group_size)
        if layout != CUDA_ORDER or x.dtype == torch.float64:
            return ops.linear_many_reference(x, *lists, activation_bits, layout)
        ops.check_options(None, activation_bits)
        ops.check_activation("x", x)
        ops.check_lists(*lists)
        weights = [
            self._weight(x, p, s, z, b, n, x.shape[-1], width, g)
            for p, s, z, b, n, width, g in zip(*lists, strict=True)
        ]
        return self._multiply(x, weights, activation_bits)

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
        return self._rows(weight, torch.float32, start, stop)

    def _weight(
        self, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None,
        out_features: int, in_features: int, bits: int, group_size: int,
    ) -> Weight:  # fmt: skip
        ops.check_cuda_weight(x, packed, scale, zero, out_features, in_features, bits, group_size)
        if bias is not None:
            ops.check_tensor("bias", bias, (out_features,), ops.ACTIVATION_DTYPES, x)
            bias = (bias.float() if bias.dtype == torch.float64 else bias).contiguous()
        shape = Shape.of(out_features, in_features, group_size, bits)
        tensors = (packed.contiguous(), scale.contiguous(), None if zero is None else zero.contiguous())
        return Weight(shape, *tensors, bias)

    def _multiply(self, x: Tensor, weights: list[Weight], activation_bits: int) -> list[Tensor]:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        results = [x.new_empty(*x.shape[:-1], weight.shape.out_features) for weight in weights]
        rows = flat.shape[0]
        if rows == 0:
            return results
        decoded = []
        for weight, y in zip(weights, results):
            fits = rows <= interface.MOST_ROWS and x.dtype in _SUFFIX and weight.scale.dtype in _SUFFIX
            if fits:
                decoded.append((weight, y))
            else:
                self._multiply_dense(flat, weight, y.view(rows, -1), activation_bits)
        for first in range(0, len(decoded), interface.MOST_LAYERS):
            self._decode(flat, decoded[first : first + interface.MOST_LAYERS], activation_bits)
        return results

    def _decode(self, x: Tensor, layers: list[tuple[Weight, Tensor]], activation_bits: int) -> None:
        """One launch for all layers, after one for each order of x that they want."""
        rows = x.shape[0]
        device = self._device(x.device)
        arranged: dict[int, tuple[Tensor, Tensor | None]] = {}
        argument = interface.Decode(rows=rows, layer_count=len(layers))
        items = counters = 0
        for entry, (weight, y) in zip(argument.layers, layers):
            s = weight.shape
            ready = activation_bits == 16 and s.in_channel_order and s.in_features % 8 == 0 and x.data_ptr() % 16 == 0
            group = s.in_features if s.in_channel_order else s.group_size  # equal orders are made once
            if not ready and group not in arranged:
                arranged[group] = self._arrange(x, group, s.slots, activation_bits, device)
            inputs, token_scale = (x, None) if ready else arranged[group]
            entry.words, entry.scale, entry.zero = (
                weight.words.data_ptr(),
                weight.scale.data_ptr(),
                _pointer(weight.zero),
            )
            entry.bias, entry.bias_type = _pointer(weight.bias), 0 if weight.bias is None else TYPES[weight.bias.dtype]
            entry.x, entry.token_scale, entry.y = inputs.data_ptr(), _pointer(token_scale), y.data_ptr()
            entry.x_stride = entry.x_slots = inputs.shape[1]
            entry.out_features, entry.in_features, entry.group_size = s.out_features, s.in_features, s.group_size
            entry.bits, entry.scale_type = s.bits, TYPES[weight.scale.dtype]
            items += s.items
            counters += s.row_blocks
        widths = {weight.shape.bits for weight, _ in layers}
        bits = widths.pop() if len(widths) == 1 else interface.MIXED
        columns, grid = interface.decode_columns(rows), interface.decode_grid(items, device.processors)
        partials = x.new_empty(interface.decode_partial_bytes(grid, columns) // 4, dtype=torch.float32)
        argument.partials = partials.data_ptr()
        argument.counters = self._zeros(device, counters, x.device).data_ptr()
        name = f"qaig_decode_{f'w{bits}' if bits else 'mixed'}_{_SUFFIX[x.dtype]}_m{columns}"
        shared = interface.decode_shared_bytes(bits, columns)
        self._driver.launch(name, argument, (grid, 1), interface.DECODE_THREADS, shared, device)

    def _arrange(
        self, x: Tensor, group_size: int, slots: int, activation_bits: int, device: Device
    ) -> tuple[Tensor, Tensor | None]:
        rows, in_features = x.shape
        out = x.new_empty(rows, slots)
        token_scale = x.new_empty(rows, dtype=torch.float32) if activation_bits == 8 else None
        argument = interface.Arrange(
            x.data_ptr(), out.data_ptr(), _pointer(token_scale), rows, in_features, group_size, slots
        )
        name = f"qaig_arrange_{_SUFFIX[x.dtype]}"
        self._driver.launch(name, argument, (rows, 1), interface.ARRANGE_THREADS, 0, device)
        return out, token_scale

    def _multiply_dense(self, x: Tensor, weight: Weight, y: Tensor, activation_bits: int) -> None:
        scale = None
        if activation_bits == 8:
            x, scale = _rounded(x)
        s = weight.shape
        rows = max(_CHUNK_BYTES // (s.in_features * x.element_size()) // interface.BLOCK_ROWS, 1) * interface.BLOCK_ROWS
        for start in range(0, s.out_features, rows):
            stop = min(start + rows, s.out_features)
            part = F.linear(x, self._rows(weight, x.dtype, start, stop))
            if scale is not None:
                part = part * scale
            y[:, start:stop] = part if weight.bias is None else part + weight.bias[start:stop].to(part.dtype)

    def _rows(self, weight: Weight, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Rows [start, stop) in `dtype`."""
        s, device = weight.shape, self._device(weight.words.device)
        out = weight.words.new_empty(stop - start, s.in_features, dtype=dtype)
        most = _MOST_GRID_Y * interface.BLOCK_ROWS
        for first in range(start, stop, most):
            last = min(first + most, stop)
            argument = interface.Dequantize(
                weight.words.data_ptr(), weight.scale.data_ptr(), _pointer(weight.zero),
                out[first - start :].data_ptr(), first, last, s.out_features, s.in_features, s.group_size, s.bits,
                TYPES[weight.scale.dtype], TYPES[dtype],
            )  # fmt: skip
            grid = interface.dequantize_grid(s, first, last)
            self._driver.launch(f"qaig_dequantize_w{s.bits}", argument, grid, interface.DEQUANTIZE_THREADS, 0, device)
        return out

    def _zeros(self, device: Device, count: int, where: torch.device) -> Tensor:
        """Counters of this stream, or of the part of a CUDA graph that is captured on it; each launch leaves zeros.

        A graph has its own: it may be replayed beside other work of the stream it was captured on. Zeroing them is part
        of the capture, once.
        """
        stream = device.stream()
        capture = self._driver.capture_of(stream)
        key = (device.index, stream, capture)
        with self._lock:
            counters = self._counters.get(key)
            if counters is None or counters.numel() < count:
                if capture:  # those of captures that are over belong to their graphs' memory
                    self._counters = {k: v for k, v in self._counters.items() if k[2] in (0, capture)}
                counters = torch.zeros(max(count, _LEAST_COUNTERS), dtype=torch.int32, device=where)
                self._counters[key] = counters
            return counters

    def _device(self, device: torch.device) -> Device:
        found = self._devices.get(device)
        if found is None:
            found = self._devices[device] = self._device_of(device)
        return found


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _rounded(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x rounded as `reference.round_activations` does, to be multiplied in its dtype and then by the scale.

    bfloat16 holds the integers and not their multiples; float16 holds those well, and not the integers' sums.
    """
    if x.dtype != torch.bfloat16:
        return reference.round_activations(x).to(x.dtype), None
    largest = x.float().abs().amax(-1, keepdim=True)
    scale = largest.clamp(min=1e-5) / 127
    fits = largest <= reference.LARGEST_8_BIT
    rounded = torch.where(fits, (x.float() / scale).round(), x.float()).to(x.dtype)
    return rounded, torch.where(fits, scale, torch.ones_like(scale))
