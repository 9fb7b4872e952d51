"""Packed modules, and the `torch.ops.qaig` operators that they call.

The modules are `QAIGLinear` and `QAIGEmbedding`. This room may import `kernels`, `formats` and `utils`.
"""

from ..formats.packing import pack, pack_zero_point, packed_shapes, unpack, unpack_zero_point
from .checks import check_packed
from .embedding import QAIGEmbedding
from .linear import QAIGLinear
from .packed_module import PackedModule

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
