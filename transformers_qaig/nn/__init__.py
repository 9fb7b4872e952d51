"""Packed linear layers: `QAIGLinear`, the `torch.ops.qaig` operators it calls, and the layout of its weights."""

from .linear import QAIGLinear, check_packed
from .packing import pack, pack_zero_point, packed_shapes, unpack, unpack_zero_point

__all__ = [
    "QAIGLinear",
    "check_packed",
    "pack",
    "pack_zero_point",
    "packed_shapes",
    "unpack",
    "unpack_zero_point",
]
