"""The CUDA layout against `csrc/cuda/layout.h`, code by code: where each one is, and that all come back."""

import pytest
import torch
from torch import Tensor

from tests import seeds
from transformers_qaig.formats import cuda_layout
from transformers_qaig.formats.packing import pack, pack_zero_point

N, K = 70, 192  # the second block of 64 rows is not full

cases = pytest.mark.parametrize(
    ("bits", "group_size"), [(bits, size) for bits in (2, 3, 4, 8) for size in (32, 48, 96, -1)]
)  # groups of 48 are padded to 64 slots


def packed(bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes `[N, K]`, scales `[N, G]` and zero points `[N, G]`."""
    generator, groups = seeds.generator(bits), 1 if group_size == -1 else K // group_size
    codes = torch.randint(0, 2**bits, (N, K), generator=generator, dtype=torch.uint8)
    zero = torch.randint(0, 2**bits, (N, groups), generator=generator, dtype=torch.uint8)
    return codes, torch.rand(N, groups, generator=generator), zero


def in_cuda_layout(bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, zero = packed(bits, group_size)
    stored = pack(codes, bits), scale, pack_zero_point(zero, bits)
    return cuda_layout.from_checkpoint(*stored, N, K, bits, group_size)


def code_at(words: Tensor, row: int, slot: int, bits: int) -> int:
    """Reads one code as the header describes it: a row is 16 r + 8 h + g, and so on."""
    r, h, g = row % 64 // 16, row // 8 % 2, row % 8
    tile, within = divmod(slot, 64)
    unit, t, step, side, second = within // 32, within // 8 % 4, within // 4 % 2, within // 2 % 2, within % 2
    pair, lane = 8 * unit + 4 * step + 2 * side + h, 4 * g + t
    mine = [int(words[row // 64, tile, word // 4, lane, word % 4]) for word in range(r * bits, (r + 1) * bits)]
    if bits == 3 and pair == 15:  # one bit in each of the three words
        return sum((mine[bit] >> 15 + 16 * second & 1) << bit for bit in range(3))
    word, shift = (pair // 5, 3 * (pair % 5)) if bits == 3 else divmod(pair * bits, 16)
    return mine[word] >> shift + 16 * second & 2**bits - 1


@cases
def test_each_code_is_where_the_header_says(bits: int, group_size: int) -> None:
    codes, _, _ = packed(bits, group_size)
    words, _, _ = in_cuda_layout(bits, group_size)
    channels = K if group_size == -1 else group_size
    padded = -(-channels // 32) * 32
    assert words.shape == cuda_layout.shapes(N, K, bits, group_size)[0]
    for row in (0, 7, 8, 21, 63, 64, 69):
        for column in range(0, K, 5):
            slot = column // channels * padded + column % channels
            assert code_at(words, row, slot, bits) == codes[row, column], (row, column)


@cases
def test_scales_and_zero_points_are_in_the_order_of_lanes(bits: int, group_size: int) -> None:
    _, scale, zero = packed(bits, group_size)
    _, scales, zeros = in_cuda_layout(bits, group_size)
    for row in range(N):
        place = 8 * (row % 8) + 2 * (row % 64 // 16) + row // 8 % 2
        assert torch.equal(scales[row // 64, :, place], scale[row])
        assert torch.equal(zeros[row // 64, :, place], zero[row])


@cases
def test_everything_comes_back_whole_and_by_rows(bits: int, group_size: int) -> None:
    codes, scale, zero = packed(bits, group_size)
    stored = in_cuda_layout(bits, group_size)
    back = cuda_layout.to_checkpoint(*stored, N, K, bits, group_size)
    for found, expected in zip(back, (pack(codes, bits), scale, zero)):
        assert torch.equal(found, expected)
    rows = torch.tensor([69, 0, 17, 17, 64])
    found_rows = cuda_layout.read_rows(*stored, rows, K, bits, group_size)
    for found, expected in zip(found_rows, (codes, scale, zero)):
        assert torch.equal(found, expected[rows])


def test_a_symmetric_weight_has_no_zero_points() -> None:
    codes, scale, _ = packed(4, 32)
    words, scales, zeros = cuda_layout.from_checkpoint(pack(codes, 4), scale, None, N, K, 4, 32)
    assert not zeros.numel()
    assert not cuda_layout.to_checkpoint(words, scales, None, N, K, 4, 32)[2].numel()
    assert cuda_layout.read_rows(words, scales, None, torch.tensor([3]), K, 4, 32)[2] is None
