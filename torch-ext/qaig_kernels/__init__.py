"""The operators of packed layers on the CPU, as a kernel of the Hugging Face Hub.

Arguments are those of `torch.ops.qaig`: see `docs/reference/operators.md` of transformers-qaig.
Activations in float64 need that package.
"""

from ._ops import ops

linear = ops.linear
linear_many = ops.linear_many
repack = ops.repack
dequantize = ops.dequantize
dequantize_columns = ops.dequantize_columns
embedding = ops.embedding
experts_linear = ops.experts_linear
experts_route = ops.experts_route
experts_sum = ops.experts_sum
gptq_columns = ops.gptq_columns

__all__ = [
    "dequantize",
    "dequantize_columns",
    "embedding",
    "experts_linear",
    "experts_route",
    "experts_sum",
    "gptq_columns",
    "linear",
    "linear_many",
    "repack",
]
