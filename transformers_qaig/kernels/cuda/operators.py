"""Runs `qaig::linear`, `linear_many` and `dequantize` on CUDA tensors, with kernels that NVRTC made.

Checks and choices are the same as in `csrc/ops/cuda` in the compiled library. `csrc/README.md` says which kernel
multiplies how many tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...formats import checks
from ...formats.packing import CUDA_LAYOUT
from . import interface
from .activations import Inputs
from .dequantized_matmul import dequantize_rows, dequantized_matmul
from .driver import Device, Driver
from .layer import SUFFIX, Layer, MatmulKernel, checked_weight, choose_kernel
from .packed_matmul import packed_matmul


class Operators:
    """The operators on CUDA tensors.

    Args:
        driver: launches kernels.
        device_of: returns the `Device` of a `torch.device`.
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
        """Computes what `qaig::linear_reference` describes, and raises as it does."""
        tensors, rotation = ([packed], [scale], [zero], [bias]), ([rotation_block], [rotation_seed])
        return self.linear_many(x, *tensors, *rotation, [out_features], [bits], [group_size], activation_bits, layout)[
            0
        ]

    def linear_many(
        self, x: Tensor, packed: list[Tensor], scale: list[Tensor], zero: list[Tensor | None],
        bias: list[Tensor | None], rotation_block: list[int], rotation_seed: list[int], out_features: list[int],
        bits: list[int], group_size: list[int], activation_bits: int, layout: int,
    ) -> list[Tensor]:  # fmt: skip
        """Computes what `qaig::linear_many` describes, and raises as it does."""
        lists = (packed, scale, zero, bias, out_features, bits, group_size)
        checks.check_activation("x", x)
        checks.check_activation_bits(activation_bits)
        checks.check_lists(*lists, rotation_block, rotation_seed)
        for block, seed in zip(rotation_block, rotation_seed):
            checks.checked_rotation(block, seed, x.shape[-1])

        def by_reference(i: int) -> Tensor:
            tensors, sizes = (packed[i], scale[i], zero[i], bias[i]), (out_features[i], bits[i], group_size[i])
            rotation = rotation_block[i], rotation_seed[i]
            return torch.ops.qaig.linear_reference(x, *tensors, *rotation, *sizes, activation_bits, layout)

        if layout != CUDA_LAYOUT or x.dtype not in SUFFIX:
            return [by_reference(i) for i in range(len(packed))]
        weights = [  # everything is checked before anything is computed
            checked_weight(x, p, s, z, b, n, x.shape[-1], width, g)
            for p, s, z, b, n, width, g in zip(*lists, strict=True)
        ]
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        rows, device = flat.shape[0], self._device(x.device)
        tuning, rounded = interface.tuning_for(device.capability), activation_bits == 8
        inputs = Inputs(self._driver, flat, rounded, device)
        results, layers = [], []
        for i, weight in enumerate(weights):
            kernel = choose_kernel(weight, rows, rounded, rotation_block[i] != 0, tuning)
            if rows > 0 and kernel is MatmulKernel.REFERENCE:
                results.append(by_reference(i))
                continue
            y = x.new_empty(*x.shape[:-1], weight.shape.out_features)
            results.append(y)
            if rows == 0:
                continue
            rotation = checks.checked_rotation(rotation_block[i], rotation_seed[i], x.shape[-1])
            layer = Layer(weight, y.view(rows, -1), rotation, kernel)
            if kernel is MatmulKernel.DEQUANTIZE:
                dequantized_matmul(self._driver, flat, layer, inputs, tuning.chunk_bytes, device)
            else:
                layers.append(layer)
        packed_matmul(self._driver, flat, layers, inputs, device)
        return results

    def dequantize(
        self, packed: Tensor, scale: Tensor, zero: Tensor | None, out_features: int, in_features: int, bits: int,
        group_size: int, layout: int, start: int, stop: int,
    ) -> Tensor:  # fmt: skip
        """Dequantizes rows [start, stop) of a weight in CUDA layout, to float32.

        Raises:
            ValueError: a tensor does not have the shape and dtype that the sizes ask for, or the rows do not exist.
            NotImplementedError: another layout.
        """
        if layout != CUDA_LAYOUT:
            raise NotImplementedError(f"layout={layout} is not the CUDA layout")
        weight = checked_weight(packed, packed, scale, zero, None, out_features, in_features, bits, group_size)
        if not 0 <= start <= stop <= out_features:
            raise ValueError(f"rows {start} to {stop} are not within the {out_features} of the weight")
        out = packed.new_empty(stop - start, in_features, dtype=torch.float32)
        dequantize_rows(self._driver, weight, start, stop, out, self._device(packed.device))
        return out

    def gptq_columns(
        self, rows: Tensor, errors: Tensor, codes: Tensor, factor: Tensor, groups: Tensor, step: Tensor,
        scale: Tensor, zero: Tensor, max_code: int,
    ) -> None:  # fmt: skip
        """Computes what `rounding.gptq_columns.gptq_columns_reference` describes.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit, or tensors that are not contiguous.
        """
        count, size = rows.shape
        if not 1 <= count <= interface.MAX_GPTQ_COLUMNS or size >= 1 << 31 or not 1 <= max_code <= 255:
            raise ValueError(
                f"rows must be 1 to {interface.MAX_GPTQ_COLUMNS} and max_code 1 to 255, got {count} and {max_code}"
            )
        of_groups = (len(step), size)
        for name, tensor, shape, dtype in (
            ("rows", rows, (count, size), torch.float32), ("errors", errors, (count, size), torch.float32),
            ("codes", codes, (count, size), torch.uint8), ("factor", factor, (count, count), torch.float32),
            ("groups", groups, (count,), torch.int64), ("step", step, of_groups, torch.float32),
            ("scale", scale, of_groups, torch.float32), ("zero", zero, of_groups, torch.float32),
        ):  # fmt: skip
            if tensor.shape != shape or tensor.dtype != dtype or tensor.device != rows.device:
                raise ValueError(
                    f"{name} must be {dtype} {shape} on {rows.device}, got {tensor.dtype} {tuple(tensor.shape)} on "
                    f"{tensor.device}"
                )
            checks.check_dense(name, tensor)
            if not (min(tensor.stride()) > 0 if tensor is factor else tensor.is_contiguous()):
                raise ValueError(f"{name} must be contiguous, factor at least not expanded")
        if size == 0:
            return
        pointers = (t.data_ptr() for t in (rows, errors, codes, factor, groups, step, scale, zero))
        argument = interface.GptqColumns(*pointers, size, *factor.stride(), count, len(step), max_code)
        grid, device = (interface.gptq_columns_grid(size), 1), self._device(rows.device)
        self._driver.launch("qaig_gptq_columns", argument, grid, interface.GPTQ_THREADS, 0, device)

    def _device(self, device: torch.device) -> Device:
        found = self._devices.get(device)
        if found is None:
            found = self._devices[device] = self._device_of(device)
        return found
