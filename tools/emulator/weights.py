"""Packed weights for emulated kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from transformers_qaig.formats import cuda_layout
from transformers_qaig.formats.packing import num_groups, pack, pack_zero_point
from transformers_qaig.kernels.cuda.interface import Shape


@dataclass
class Weight:
    """A packed weight in the checkpoint and the CUDA layout, and what it stands for."""

    codes: Tensor
    checkpoint: tuple[Tensor, Tensor, Tensor | None]
    words: Tensor
    scale: Tensor
    zero: Tensor | None
    out_features: int
    in_features: int
    bits: int
    group_size: int
    bias: Tensor | None = None

    @property
    def shape(self) -> Shape:
        return Shape.of(self.out_features, self.in_features, self.group_size, self.bits)


def random_weight(
    bits: int, out_features: int, in_features: int, group_size: int = -1, sym: bool = False,
    dtype: torch.dtype = torch.float16, bias: torch.dtype | None = None,
) -> Weight:  # fmt: skip
    groups = num_groups(in_features, group_size)
    codes = torch.randint(0, 2**bits, (out_features, in_features), dtype=torch.uint8)
    scale = ((torch.rand(out_features, groups) + 0.1) * torch.randn(out_features, groups).sign() * 0.1).to(dtype)
    zero = None if sym else torch.randint(0, 2**bits, (out_features, groups), dtype=torch.uint8)
    added = None if bias is None else torch.randn(out_features).to(bias)
    return make_weight(codes, scale, zero, bits, group_size, added)


def make_weight(
    codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int, bias: Tensor | None = None
) -> Weight:
    out_features, in_features = codes.shape
    checkpoint = (pack(codes, bits), scale, None if zero is None else pack_zero_point(zero, bits))
    sizes = (out_features, in_features, bits, group_size)
    words, sorted_scale, sorted_zero = cuda_layout.from_checkpoint(*checkpoint, *sizes)
    sorted_zero = None if zero is None else sorted_zero
    return Weight(codes, checkpoint, words, sorted_scale, sorted_zero, *sizes, bias)
