"""Mirrors the headers of `csrc/cuda` in Python: arguments, byte by byte, and the geometry of a launch.

Its names are those of `arguments.h`, `geometry.h`, `layout.h` and `tuning.h`. tests/kernels/cuda/test_interface.py
compiles the headers and compares every size, offset and rule.
"""

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...formats.packing import num_groups

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MAX_LAYERS, MAX_GEMV_ROWS, MAX_EXPERTS = 8, 16, 1024
GEMV_THREADS, DEQUANTIZE_THREADS, QUANTIZE_THREADS = 128, 128, 256
GPTQ_THREADS, MAX_GPTQ_COLUMNS = 128, 32
GEMV_WARPS = GEMV_THREADS // 32
GEMM_WARPS, GEMM_THREADS, GEMM_ROW_BLOCKS, GEMM_COLUMNS = 4, 128, 2, 64
GEMM_BLOCKS_PER_PROCESSOR, MIN_GEMM_STEPS = 2, 16
MAX_STEPS = 1 << 31
MAX_GRID_Y = 65_535
GEMM_I8_STAGES = 4
MIXED_BITS = 0  # stands for the bits of the mixed kernel
BLOCK_ROWS, TILE_SLOTS, UNIT_SLOTS = 64, 64, 32


class Layer(ctypes.Structure):
    """`QaigLayer`."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("token_scale", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("x_stride", ctypes.c_longlong),
        ("x_slots", ctypes.c_int),
        ("out_features", ctypes.c_int),
        ("in_features", ctypes.c_int),
        ("group_size", ctypes.c_int),
        ("bits", ctypes.c_int),
        ("scale_type", ctypes.c_int),
        ("bias_type", ctypes.c_int),
    )


class Matmul(ctypes.Structure):
    """`QaigMatmul`."""

    _fields_ = (
        ("workspace", ctypes.c_void_p),
        ("semaphores", ctypes.c_void_p),
        ("rows", ctypes.c_int),
        ("layer_count", ctypes.c_int),
        ("layers", Layer * MAX_LAYERS),
    )


class Experts(ctypes.Structure):
    """`QaigExperts`."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("token_scale", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("x_stride", ctypes.c_longlong),
        ("x_slots", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("experts", ctypes.c_int),
        ("out_features", ctypes.c_int),
        ("in_features", ctypes.c_int),
        ("group_size", ctypes.c_int),
        ("scale_type", ctypes.c_int),
        ("bits", ctypes.c_ubyte * MAX_EXPERTS),
    )


class Dequantize(ctypes.Structure):
    """`QaigDequantize`."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("start", ctypes.c_int),
        ("stop", ctypes.c_int),
        ("out_features", ctypes.c_int),
        ("in_features", ctypes.c_int),
        ("group_size", ctypes.c_int),
        ("bits", ctypes.c_int),
        ("scale_type", ctypes.c_int),
        ("type", ctypes.c_int),
    )


class QuantizeActivations(ctypes.Structure):
    """`QaigQuantizeActivations`."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("token_scale", ctypes.c_void_p),
        ("rotation_seed", ctypes.c_ulonglong),
        ("rotation_block", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("in_features", ctypes.c_int),
        ("group_size", ctypes.c_int),
        ("slots", ctypes.c_int),
        ("bytes", ctypes.c_int),
    )


@dataclass(frozen=True)
class Shape:
    """Sizes of a weight in CUDA layout; `group_size` in channels, never -1."""

    out_features: int
    in_features: int
    group_size: int
    bits: int

    @classmethod
    def of(cls, out_features: int, in_features: int, group_size: int, bits: int) -> "Shape":
        """Makes the sizes from a layer's `group_size`, which may be -1.

        Raises:
            ValueError: `group_size` does not divide `in_features`.
        """
        return cls(out_features, in_features, in_features // num_groups(in_features, group_size), bits)

    @property
    def row_blocks(self) -> int:
        """Blocks of `BLOCK_ROWS` rows, the last one padded."""
        return -(-self.out_features // BLOCK_ROWS)

    @property
    def groups(self) -> int:
        """Quantization groups of a row."""
        return self.in_features // self.group_size

    @property
    def tiles(self) -> int:
        """Tiles of `TILE_SLOTS` slots in a row, with each group padded to whole units."""
        units = self.groups * -(-self.group_size // UNIT_SLOTS)
        return (units + 1) // 2

    @property
    def slots(self) -> int:
        """Slots of a row: input channels with the padding of groups."""
        return self.tiles * TILE_SLOTS

    @property
    def work_items(self) -> int:
        """Work items of a gemv: row blocks times tiles."""
        return self.row_blocks * self.tiles

    @property
    def in_channel_order(self) -> bool:
        """Whether slot i is channel i."""
        return self.groups == 1 or self.group_size % UNIT_SLOTS == 0


class Tuning(NamedTuple):
    """A row of `kTunings`."""

    capability: int
    max_gemv_rows: int
    max_gemm_f16_rows: int
    max_gemm_i8_rows: int
    chunk_bytes: int


TUNINGS = (
    Tuning(0, 32, 0, 0, 2 << 20),
    Tuning(80, 16, 256, 1 << 16, 16 << 20),
    Tuning(86, 16, 256, 1 << 16, 3 << 20),
    Tuning(89, 16, 256, 1 << 16, 16 << 20),
    Tuning(90, 16, 128, 192, 256 << 20),
    Tuning(100, 16, 128, 128, 32 << 20),
    Tuning(120, 16, 256, 1 << 16, 32 << 20),
)


class GptqColumns(ctypes.Structure):
    """`QaigGptqColumns`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("step", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("size", ctypes.c_longlong),
        ("factor_row", ctypes.c_longlong),
        ("factor_column", ctypes.c_longlong),
        ("count", ctypes.c_int),
        ("group_count", ctypes.c_int),
        ("max_code", ctypes.c_int),
    )


def gptq_columns_grid(size: int) -> int:
    """Returns the blocks of a launch that rounds columns of `size` rows."""
    return -(-size // GPTQ_THREADS)


def tuning_for(capability: int) -> Tuning:
    """Returns the tuning of the latest listed compute capability up to this one."""
    return [t for t in TUNINGS if t.capability <= capability][-1]


def gemv_columns(rows: int) -> int:
    """Returns how many columns a gemv computes for a number of rows of x: 8 or 16."""
    return 8 if rows <= 8 else 16


def gemv_shared_bytes(bits: int, columns: int) -> int:
    """Returns the bytes of shared memory of a gemv; `bits` 0 is the kernel for mixed widths."""
    bits = bits or 8  # the mixed kernel has room for the widest
    stages = {2: 6, 3: 4, 4: 3, 8: 2}[bits]
    return GEMV_WARPS * stages * (bits * 512 + 2 * BLOCK_ROWS * 3) + _gemv_accumulator_bytes(columns)


def gemv_grid(items: int, processors: int, columns: int) -> int:
    """Returns the blocks of a gemv launch."""
    return min(-(-items // GEMV_WARPS), processors * (3 if columns == 8 else 2))


def gemv_workspace_bytes(grid: int, columns: int) -> int:
    """Returns the bytes of workspace for a gemv's split-K reduction."""
    return 2 * grid * _gemv_accumulator_bytes(columns)


def gemm_output_tiles(shape: Shape, rows: int) -> int:
    """Returns how many tiles the output of a gemm has."""
    return -(-shape.row_blocks // GEMM_ROW_BLOCKS) * -(-rows // GEMM_COLUMNS)


def gemm_k_steps(shape: Shape, rows: int) -> int:
    """Returns the k-steps of a gemm over all output tiles."""
    return gemm_output_tiles(shape, rows) * shape.tiles


def gemm_grid(steps: int, processors: int) -> int:
    """Returns the blocks of a gemm launch."""
    return min(-(-steps // MIN_GEMM_STEPS), processors * GEMM_BLOCKS_PER_PROCESSOR)


def gemm_workspace_bytes(grid: int) -> int:
    """Returns the bytes of workspace for a gemm's split-K reduction."""
    return 2 * grid * GEMM_ROW_BLOCKS * BLOCK_ROWS * GEMM_COLUMNS * 4


def gemm_semaphores(outputs: int) -> int:
    """Returns how many semaphores a gemm needs for a number of output tiles."""
    return outputs * GEMM_WARPS


def gemm_f16_shared_bytes(bits: int) -> int:
    """Returns the bytes of shared memory of a gemm with 16-bit activations."""
    return (3 if bits == 8 else 4) * _gemm_stage_bytes(bits, 2)


def gemm_i8_shared_bytes(bits: int) -> int:
    """Returns the bytes of shared memory of a gemm with 8-bit activations."""
    return GEMM_I8_STAGES * _gemm_stage_bytes(bits, 1)


def dequantize_grid(shape: Shape, start: int, stop: int) -> tuple[int, int]:
    """Returns the grid of a launch that dequantizes rows [start, stop)."""
    return -(-shape.tiles // 4), -(-stop // BLOCK_ROWS) - start // BLOCK_ROWS


def dequantize_stop(start: int, stop: int) -> int:
    """Returns the last row, exclusive, that one launch can dequantize from `start` on."""
    return min(stop, (start // BLOCK_ROWS + MAX_GRID_Y) * BLOCK_ROWS)


def _gemm_stage_bytes(bits: int, element_bytes: int) -> int:
    return GEMM_ROW_BLOCKS * bits * 512 + GEMM_COLUMNS * TILE_SLOTS * element_bytes


def _gemv_accumulator_bytes(columns: int) -> int:
    return BLOCK_ROWS * columns * 4
