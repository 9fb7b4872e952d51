"""Computes packed linear layers in plain torch: the oracle of every kernel and the fallback on every device.

    W[n, k] = (code[n, k] - zero[n, k // group_size]) * scale[n, k // group_size]

This is evaluated in float32 and then rounded once to the requested dtype. Without zero points (symmetric) zero is
2^(bits - 1). Nothing here checks its arguments: `ops.py` does, before it calls.

`linear` expands the weight a few rows at a time: less than 64 MB of it exists at once, whatever the size of the layer.
The chunks depend only on the shape of the weight, so equal arguments give equal bits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cuda_layout
from .hadamard import Rotation, rotate, rotate_back
from .packing import (
    CHECKPOINT_LAYOUT,
    CPU_LAYOUT,
    CUDA_LAYOUT,
    column_chunks,
    row_chunks,
    unpack,
    unpack_zero_point,
)

LARGEST_8_BIT = 1e30  # a token with a larger value, or one that is not finite, is not rounded to 8 bits


class Weight(NamedTuple):
    """The tensors of a packed weight and the sizes needed to read them, as in `ops.linear_reference`."""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    out_features: int
    in_features: int
    bits: int
    group_size: int
    layout: int

    def rows(self, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
        """Yields `(start, stop, W[start:stop])` in `dtype`, for all rows in order."""
        chunks = row_chunks(self.out_features, self.in_features)
        if self.layout != CHECKPOINT_LAYOUT:
            for start, stop in chunks:
                yield start, stop, torch.ops.qaig.dequantize(*self, start, stop).to(dtype)
            return
        groups = self.scale.shape[1]
        zeros = None if self.zero is None else unpack_zero_point(self.zero, self.bits, self.out_features)
        for start, stop in chunks:
            codes = unpack(self.packed[start:stop], self.bits, self.in_features).view(stop - start, groups, -1)
            weight = codes.to(torch.float32)
            weight -= 2 ** (self.bits - 1) if zeros is None else zeros[start:stop, :, None]
            weight *= self.scale[start:stop, :, None]
            yield start, stop, weight.view(stop - start, self.in_features).to(dtype)


def dequantize(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Returns the weight `[N, K]` in `dtype`; the arithmetic is float32 for every dtype."""
    out = torch.empty(weight.out_features, weight.in_features, dtype=dtype, device=weight.packed.device)
    for start, stop, rows in weight.rows(dtype):
        out[start:stop] = rows
    return out


def round_activations(x: Tensor) -> Tensor:
    """Rounds each token of x `[..., K]` to 8 bits: s * round(x / s), s = max(|x|, 1e-5) / 127, in float32.

    A token that holds a NaN, an infinity or a value beyond 1e30 stays as it is.
    """
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)
    # By a tensor: by a number, torch multiplies with the rounded inverse on a GPU, and some scales are other ones then.
    scale = largest.clamp(min=1e-5) / torch.full_like(largest, 127)
    return torch.where(largest <= LARGEST_8_BIT, (x / scale).round() * scale, x)


def linear(x: Tensor, weight: Weight, bias: Tensor | None, rotation: Rotation | None, activation_bits: int) -> Tensor:
    """Computes (x R) @ W.T + bias for x `[..., K]`: `[..., N]` in the dtype of x. Without a rotation R is the identity.

    W and the bias are first rounded to the dtype of x. Where x is rotated or rounded to 8 bits, it is made float32
    first, and the product is float32. A float64 x that is only rotated stays float64.
    """
    flat = x.reshape(-1, weight.in_features)
    if rotation is not None:
        flat = rotate(flat, rotation)
    if activation_bits == 8:
        flat = round_activations(flat)
    dtype = flat.dtype
    bias = None if bias is None else bias.to(dtype)
    out = x.new_empty(flat.shape[0], weight.out_features)
    for start, stop, rows in weight.rows(dtype):
        out[:, start:stop] = F.linear(flat, rows, None if bias is None else bias[start:stop])
    return out.view(*x.shape[:-1], weight.out_features)


def linear_grad_input(grad: Tensor, weight: Weight, rotation: Rotation | None) -> Tensor:
    """Computes grad @ W R' for grad `[..., N]`: `[..., K]` in the dtype of grad.

    Sums over N are float32 or wider.
    """
    flat = grad.reshape(-1, grad.shape[-1]).to(product_dtype(grad))
    if weight.layout == CPU_LAYOUT and flat.dtype == torch.bfloat16:
        total = _product_by_columns(flat, weight)
    else:
        total = _product_by_rows(flat, weight)
    if rotation is not None:
        total = rotate_back(total, rotation)
    return total.to(grad.dtype).view(*grad.shape[:-1], weight.in_features)


def _product_by_rows(x: Tensor, weight: Weight) -> Tensor:
    """Computes x @ W, float32 or wider: parts of the sum over N are added."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(x.shape[0], weight.in_features, dtype=dtype, device=x.device)
    for start, stop, rows in weight.rows(x.dtype):
        add_product(total, x[:, start:stop], rows)
    return total


def _product_by_columns(x: Tensor, weight: Weight) -> Tensor:
    """Computes x @ W, bfloat16: each sum is complete, and is rounded once."""
    chunks = column_chunks(weight.out_features, weight.in_features)
    if len(chunks) == 1:
        return torch.mm(x, torch.ops.qaig.dequantize_columns(*weight, *chunks[0]))
    total = x.new_empty(x.shape[0], weight.in_features)
    for start, stop in chunks:
        torch.mm(x, torch.ops.qaig.dequantize_columns(*weight, start, stop), out=total[:, start:stop])
    return total


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which a product with x is fastest: float32 where the CPU multiplies no half precision.

    There torch multiplies bfloat16 in a plain loop, which takes a hundred times as long. float32 is not less exact.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return x.dtype
    able = torch.cpu.get_capabilities()
    kind = "bf16" if x.dtype == torch.bfloat16 else "fp16"
    return x.dtype if able.get(f"avx512_{kind}") or able.get(f"amx_{kind}") else torch.float32


def add_product(total: Tensor, x: Tensor, rows: Tensor) -> None:
    """Adds x @ rows to `total`, whose dtype may be wider."""
    if total.dtype == x.dtype:
        total.addmm_(x, rows)
    else:
        total += x @ rows


def embedding(ids: Tensor, weight: Weight) -> Tensor:
    """Returns W[ids], float32 `[*ids.shape, K]`; only those rows are read."""
    flat = ids.reshape(-1).long()
    zero: Tensor | None
    if weight.layout == CHECKPOINT_LAYOUT:
        codes = unpack(weight.packed.index_select(0, flat), weight.bits, weight.in_features)
        scale = weight.scale.index_select(0, flat)
        zero = None if weight.zero is None else _zero_rows(weight.zero, flat, weight.bits)
    elif weight.layout == CUDA_LAYOUT:
        # Refuses what is no row, on the device itself: the last row block may have more rows than the weight.
        flat = torch.arange(weight.out_features, device=flat.device).index_select(0, flat)
        tensors = weight.packed, weight.scale, weight.zero
        codes, scale, zero = cuda_layout.read_rows(*tensors, flat, weight.in_features, weight.bits, weight.group_size)
    else:
        rows = [torch.ops.qaig.dequantize(*weight, i, i + 1) for i in flat.tolist()]
        out = torch.cat([flat.new_empty(0, weight.in_features, dtype=torch.float32), *rows])
        return out.view(*ids.shape, weight.in_features)
    out = codes.view(*scale.shape, weight.in_features // scale.shape[1]).float()
    out -= 2 ** (weight.bits - 1) if zero is None else zero[..., None]
    out *= scale[..., None]
    return out.view(*ids.shape, weight.in_features)


def _zero_rows(words: Tensor, rows: Tensor, bits: int) -> Tensor:
    """Reads the zero points of some rows: int64 `[n, G]` from int32 `[ceil(N * bits / 32), G]`, packed along N."""
    first, shift = rows * bits // 32, (rows * bits % 32)[:, None]
    low, high = (words.index_select(0, i.clamp(max=len(words) - 1)).long() & 0xFFFFFFFF for i in (first, first + 1))
    return (low | high << 32) >> shift & (2**bits - 1)
