"""Packed modules, the `torch.ops.qaig` operators that they call, their layouts, and the reference in plain torch.

The modules are `QAIGLinear` and `QAIGEmbedding`. This room may import `scheme`, `utils` and `kernels`.
"""

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
