"""Packed modules, `QAIGLinear` and `QAIGEmbedding`, the `torch.ops.qaig` operators they call, and their layout."""

from .embedding import QAIGEmbedding
from .linear import QAIGLinear
from .packed_module import PackedModule, check_packed
from .packing import pack, pack_zero_point, packed_shapes, unpack, unpack_zero_point

__all__ = [
    "PackedModule",
    "QAIGEmbedding",
    "QAIGLinear",
    "check_packed",
    "pack",
    "pack_zero_point",
    "packed_shapes",
    "unpack",
    "unpack_zero_point",
]
