"""How the packed weights of a stack of experts are stored, and their product with routed rows in plain torch.

A stack has E experts. Each of its projections is one weight `[N, K]` an expert, and experts may differ in `bits`. Their
words stand one after the other in one flat tensor, in expert order and without padding. So do their zero points. A
section holds what `packing` or a kernel's layout makes of one linear, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cuda_layout
from .checks import ACTIVATION_DTYPES, check_activation_bits, check_dense, check_tensor
from .packing import (
    CHECKPOINT_LAYOUT,
    CPU_LAYOUT,
    CUDA_LAYOUT,
    KERNEL_BITS,
    SCALE_DTYPES,
    check_bits,
    num_groups,
    num_words,
)
from .reference import Weight, add_product, product_dtype, round_activations

_TILE_ROWS, _UNIT_SLOTS = 16, 32  # of csrc/cpu/layout.h
MOST_EXPERTS = 1 << 16
_MISFIT = "the packed experts do not match their sizes (bits, out_features, in_features, group_size)"


class ExpertShapes(NamedTuple):
    """The shapes of the packed tensors of a projection.

    Attributes:
        packed: of each expert's words, before they are flattened.
        scale: of all scales.
        zero: of each expert's zero points before they are flattened, or of all zero points in a kernel's layout.
    """

    packed: list[tuple[int, ...]]
    scale: tuple[int, ...]
    zero: list[tuple[int, ...]] | tuple[int, ...]

    @property
    def words(self) -> int:
        """The number of words of all experts."""
        return sum(map(math.prod, self.packed))

    @property
    def zero_shape(self) -> tuple[int, ...]:
        """The shape of the tensor of zero points."""
        return (sum(map(math.prod, self.zero)),) if isinstance(self.zero, list) else self.zero


class ExpertWeights(NamedTuple):
    """The tensors of one projection of a stack, and the sizes needed to read them.

    Attributes:
        packed: int32, flat.
        scale: floating; `[E, N, G]` in the checkpoint layout.
        zero: int32, flat, in the checkpoint layout; None if symmetric.
        bits: of each expert, or one entry for all.
        num_experts: E.
        out_features: N.
        in_features: K.
        group_size: input channels per group, or -1; the same for all experts.
        layout: of words, scales and zero points.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: Sequence[int]
    num_experts: int
    out_features: int
    in_features: int
    group_size: int
    layout: int

    def bits_of(self, expert: int) -> int:
        """Returns the bits of an expert's codes."""
        return self.bits[0] if len(self.bits) == 1 else self.bits[expert]

    def shapes(self) -> ExpertShapes:
        """Returns the shapes that the tensors must have."""
        bits = [self.bits_of(expert) for expert in range(self.num_experts)]
        return expert_shapes(bits, self.out_features, self.in_features, self.group_size, self.layout)

    def experts(self, wanted: Sequence[int]) -> Iterator[Weight]:
        """Yields the weights of some experts; no other expert is read."""
        shapes = self.shapes()
        words = [0, *accumulate(map(math.prod, shapes.packed))]
        zeros = [0, *accumulate(map(math.prod, shapes.zero))] if isinstance(shapes.zero, list) else []
        for e in wanted:
            zero = self.zero
            if zero is not None:
                zero = zero[zeros[e] : zeros[e + 1]].view(shapes.zero[e]) if zeros else zero[e]
            packed = self.packed[words[e] : words[e + 1]].view(shapes.packed[e])
            sizes = (self.out_features, self.in_features, self.bits_of(e), self.group_size, self.layout)
            yield Weight(packed, self.scale[e], zero, *sizes)


def expert_shapes(
    bits: Sequence[int], out_features: int, in_features: int, group_size: int, layout: int = CHECKPOINT_LAYOUT
) -> ExpertShapes:
    """Returns the shapes of the packed tensors of a projection.

    Args:
        bits: of each expert.
        out_features: N.
        in_features: K.
        group_size: input channels per group, or -1.
        layout: of a checkpoint or of kernels.

    Raises:
        ValueError: a size is out of range, or the layout has no such bits.
    """
    for width in bits:
        check_bits(width)
    if not 1 <= len(bits) <= MOST_EXPERTS:
        raise ValueError(f"a stack must have 1 to {MOST_EXPERTS} experts, got {len(bits)}")
    if out_features < 1 or in_features < 1:
        raise ValueError(f"out_features and in_features must be positive, got {out_features} and {in_features}")
    groups, count = num_groups(in_features, group_size), len(bits)
    if layout == CHECKPOINT_LAYOUT:
        words = [(out_features, num_words(in_features, width)) for width in bits]
        zeros = [(num_words(out_features, width), groups) for width in bits]
        return ExpertShapes(list(words), (count, out_features, groups), list(zeros))
    if not set(bits) <= set(KERNEL_BITS):
        raise ValueError(f"layout={layout} is for {KERNEL_BITS} bits, got bits={sorted(set(bits))}")
    if layout == CPU_LAYOUT:
        tiles = -(-out_features // _TILE_ROWS)
        units = groups * -(-(in_features // groups) // _UNIT_SLOTS)
        rows: tuple[int, ...] = (count, tiles, groups, _TILE_ROWS)
        return ExpertShapes([(tiles, units, width, _TILE_ROWS) for width in bits], rows, rows)
    if layout == CUDA_LAYOUT:
        each = [cuda_layout.shapes(out_features, in_features, width, group_size) for width in bits]
        rows = (count, *each[0][1])
        return ExpertShapes([words for words, _ in each], rows, rows)
    raise ValueError(f"layout must be 0 (checkpoint), 1 (CPU) or 2 (CUDA), got {layout}")


def check_experts(name: str, x: Tensor, offsets: Tensor, weights: ExpertWeights) -> None:
    """Checks the arguments of an operator on experts, so that nothing can be read out of bounds.

    Args:
        name: of `x` in the operator.
        x: the rows, `[R, K]` or gradients `[R, N]`.
        offsets: int32 `[E + 1]`.
        weights: the packed tensors and their sizes.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
    """
    check_dense(name, x)
    if x.dim() != 2 or x.dtype not in ACTIVATION_DTYPES:
        raise ValueError(f"{name} must be a floating tensor of two dimensions, got {x.dtype} of {tuple(x.shape)}")
    if len(weights.bits) not in (1, weights.num_experts):
        raise ValueError(
            f"bits must have one entry, or one for each of {weights.num_experts} experts, got {len(weights.bits)}"
        )
    if weights.layout not in (CHECKPOINT_LAYOUT, CPU_LAYOUT, CUDA_LAYOUT):
        raise NotImplementedError(f"layout={weights.layout} is unknown: the checkpoint layout is 0")
    shapes = weights.shapes()
    check_tensor("packed", weights.packed, (shapes.words,), (torch.int32,), x, _MISFIT)
    check_tensor("scale", weights.scale, shapes.scale, SCALE_DTYPES, x, _MISFIT)
    if weights.zero is not None:
        dtype = torch.int32 if weights.layout == CHECKPOINT_LAYOUT else torch.uint8
        check_tensor("zero", weights.zero, shapes.zero_shape, (dtype,), x, _MISFIT)
    check_offsets(offsets, weights.num_experts, x)


def check_offsets(offsets: Tensor, num_experts: int, x: Tensor) -> None:
    """Checks where the experts' rows begin.

    Args:
        offsets: int32 `[E + 1]`; begins with 0, never decreases, and ends at most at the number of rows.
        num_experts: E.
        x: the rows `[R, ...]`.

    Raises:
        ValueError: another shape, dtype, device or order.
    """
    check_tensor("offsets", offsets, (num_experts + 1,), (torch.int32,), x, _MISFIT)
    if x.device.type != "cpu":
        return  # reading them would wait for the device; every use of them is bounded by the rows there are
    if int(offsets[0]) != 0 or int(offsets[-1]) > len(x) or bool((offsets.diff() < 0).any()):
        raise ValueError(
            f"offsets must begin with 0, never decrease, and end at most at {len(x)}, the number of rows, got "
            f"{offsets.tolist()}: an index of an expert is out of range"
        )


def _ranges(offsets: Tensor, rows: int) -> list[tuple[int, int, int]]:
    """Lists `(expert, first row, last row + 1)` of each expert that has rows."""
    bounds = [min(max(bound, 0), rows) for bound in offsets.tolist()]
    return [(e, start, stop) for e, (start, stop) in enumerate(pairwise(bounds)) if start < stop]


def experts_linear(x: Tensor, offsets: Tensor, weights: ExpertWeights, activation_bits: int) -> Tensor:
    """Computes x[r] @ W_e.T for each row r of expert e, `[R, N]` in the dtype of x; rows of no expert are zero.

    The arithmetic is that of `reference.linear`. Only experts with rows are read.
    """
    check_activation_bits(activation_bits)
    out = x.new_zeros(len(x), weights.out_features)
    flat = round_activations(x) if activation_bits == 8 else x
    ranges = _ranges(offsets, len(x))
    for (_, first, last), weight in zip(ranges, weights.experts([e for e, _, _ in ranges])):
        for start, stop, rows in weight.rows(flat.dtype):
            out[first:last, start:stop] = F.linear(flat[first:last], rows)
    return out


def experts_linear_grad_input(grad: Tensor, offsets: Tensor, weights: ExpertWeights) -> Tensor:
    """Computes grad[r] @ W_e for each row r of expert e, `[R, K]` in the dtype of grad; rows of no expert are zero."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    out = torch.zeros(len(grad), weights.in_features, dtype=dtype, device=grad.device)
    ranges, wide = _ranges(offsets, len(grad)), grad.to(product_dtype(grad))
    for (_, first, last), weight in zip(ranges, weights.experts([e for e, _, _ in ranges])):
        for start, stop, rows in weight.rows(wide.dtype):
            add_product(out[first:last], wide[first:last, start:stop], rows)
    return out.to(grad.dtype)
