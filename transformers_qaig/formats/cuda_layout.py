"""Converts the checkpoint layout to the CUDA kernels' layout and back, in plain torch on any device.

`csrc/cuda/layout.h` describes the layout; the names here are its.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import num_groups, pack, row_chunks, unpack, unpack_zero_point

_BLOCK_ROWS, _TILE_SLOTS, _UNIT_SLOTS = 64, 64, 32
_PAIRS = 16  # of one lane in one row tile


def shapes(
    out_features: int, in_features: int, bits: int, group_size: int
) -> tuple[tuple[int, int, int, int, int], tuple[int, int, int]]:
    """Returns the shape of the packed words, and the shape of scales and zero points.

    Raises:
        ValueError: `group_size` does not divide `in_features`.
    """
    blocks, groups, units_per_group = _sizes(out_features, in_features, group_size)
    tiles = -(-groups * units_per_group // 2)
    return (blocks, tiles, bits, 32, 4), (blocks, groups, _BLOCK_ROWS)


def from_checkpoint(
    packed: Tensor, scale: Tensor, zero: Tensor | None, out_features: int, in_features: int, bits: int, group_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Converts packed tensors from the checkpoint layout to the CUDA layout.

    Args:
        packed: int32 `[N, ceil(K * bits / 32)]`.
        scale: floating `[N, G]`.
        zero: int32 `[ceil(N * bits / 32), G]`.
        out_features: N.
        in_features: K.
        bits: 2, 3, 4 or 8.
        group_size: a divisor of K, or -1.

    Returns:
        words int32 `[B, T, bits, 32, 4]`, scale `[B, G, 64]` in its dtype, zero uint8
        `[B, G, 64]`, or empty without one. B and T count row blocks and tiles.
    """
    words_shape, rows_shape = shapes(out_features, in_features, bits, group_size)
    words = torch.empty(words_shape, dtype=torch.int32, device=packed.device)
    for start, stop in _block_chunks(words_shape):
        first, last = start * _BLOCK_ROWS, min(stop * _BLOCK_ROWS, out_features)
        codes = unpack(packed[first:last], bits, in_features)
        words[start:stop] = _to_words(_to_slots(codes, words_shape, group_size), bits)
    zeros = packed.new_empty(0, dtype=torch.uint8)
    if zero is not None:
        zeros = _sort_rows(unpack_zero_point(zero, bits, out_features), rows_shape)
    return words, _sort_rows(scale, rows_shape), zeros


def to_checkpoint(
    words: Tensor, scale: Tensor, zero: Tensor | None, out_features: int, in_features: int, bits: int, group_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Inverts `from_checkpoint`, except that zero points come as uint8 `[N, G]`. Arguments as it returns them."""
    packed = []
    for start, stop in _block_chunks(tuple(words.shape)):
        last = min(stop * _BLOCK_ROWS, out_features)
        rows = _from_words(words[start:stop], bits)
        packed.append(pack(_from_slots(rows[: last - start * _BLOCK_ROWS], in_features, group_size), bits))
    zeros = words.new_empty(0, dtype=torch.uint8) if zero is None else _unsort_rows(zero, out_features)
    return torch.cat(packed), _unsort_rows(scale, out_features), zeros


def read_rows(
    words: Tensor, scale: Tensor, zero: Tensor | None, rows: Tensor, in_features: int, bits: int, group_size: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Reads some rows of a weight in CUDA layout. It waits for nothing, so a CUDA graph can record it.

    Args:
        words: int32 `[B, T, bits, 32, 4]`, as `from_checkpoint` returns them.
        scale: floating `[B, G, 64]`.
        zero: uint8 `[B, G, 64]`, or None.
        rows: int64 `[n]`, each of them a row of the weight: not checked.
        in_features: K.
        bits: 2, 3, 4 or 8.
        group_size: a divisor of K, or -1.

    Returns:
        codes uint8 `[n, K]`, scale `[n, G]`, zero uint8 `[n, G]` or None.
    """
    block, row = rows // _BLOCK_ROWS, rows % _BLOCK_ROWS
    r, h, g = row // 16, row // 8 % 2, row % 8
    steps = torch.arange(max(words.shape[1], bits, 4), device=words.device)
    word = r[:, None, None, None] * bits + steps[:bits]
    lane = 4 * g[:, None, None, None] + steps[:4, None]
    tile = steps[: words.shape[1], None, None]
    found = words[block[:, None, None, None], tile, word // 4, lane, word % 4]  # [n, T, t, bits]
    codes = _from_pairs(found.reshape(-1, bits), bits).view(len(rows), words.shape[1], 4, 2, 2, 2, 2, 2)
    of_row = torch.where(h.view(-1, *[1] * 6).bool(), codes[..., 1, :], codes[..., 0, :])
    slots = of_row.permute(0, 1, 3, 2, 4, 5, 6).reshape(len(rows), words.shape[1] * _TILE_SLOTS)
    place = 8 * g + 2 * r + h
    zeros = None if zero is None else zero[block, :, place]
    return _from_slots(slots, in_features, group_size), scale[block, :, place], zeros


def _sizes(out_features: int, in_features: int, group_size: int) -> tuple[int, int, int]:
    groups = num_groups(in_features, group_size)
    return -(-out_features // _BLOCK_ROWS), groups, -(-(in_features // groups) // _UNIT_SLOTS)


def _block_chunks(words_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return row_chunks(words_shape[0], words_shape[1] * _BLOCK_ROWS * _TILE_SLOTS)


def _to_slots(codes: Tensor, words_shape: tuple[int, ...], group_size: int) -> Tensor:
    """Arranges codes uint8 `[rows, K]` as `[whole row blocks, T * 64]`, padded with zeros."""
    rows, in_features = codes.shape
    groups = num_groups(in_features, group_size)
    by_group = codes.view(rows, groups, -1)
    slots = F.pad(by_group, (0, -by_group.shape[2] % _UNIT_SLOTS)).view(rows, -1)
    return F.pad(slots, (0, words_shape[1] * _TILE_SLOTS - slots.shape[1], 0, -rows % _BLOCK_ROWS))


def _from_slots(slots: Tensor, in_features: int, group_size: int) -> Tensor:
    groups = num_groups(in_features, group_size)
    channels = in_features // groups
    padded = -(-channels // _UNIT_SLOTS) * _UNIT_SLOTS
    by_group = slots[:, : groups * padded].reshape(len(slots), groups, padded)
    return by_group[..., :channels].reshape(len(slots), in_features)


# The dimensions of codes in words, and of rows by slots. A row is 16 r + 8 h + g, a slot 32 unit + 8 t + 4 step +
# 2 side + second, and a pair 8 unit + 4 step + 2 side + h.
#
#   rows by slots    block, r, h, g, tile, unit, t, step, side, second
#   lanes by pairs   block, tile, g, t, r, unit, step, side, h, second
_TO_LANES = (0, 4, 3, 6, 1, 5, 7, 8, 2, 9)
_FROM_LANES = tuple(_TO_LANES.index(i) for i in range(10))


def _to_words(slots: Tensor, bits: int) -> Tensor:
    """Packs slots uint8 `[64 B, 64 T]` into words int32 `[B, T, bits, 32, 4]`."""
    blocks, tiles = slots.shape[0] // _BLOCK_ROWS, slots.shape[1] // _TILE_SLOTS
    lanes = slots.view(blocks, 4, 2, 8, tiles, 2, 4, 2, 2, 2).permute(_TO_LANES)
    pairs = lanes.reshape(-1, _PAIRS, 2).to(torch.int32)
    pairs = pairs[..., 0] | pairs[..., 1] << 16
    words = torch.zeros(pairs.shape[0], bits, dtype=torch.int32, device=slots.device)
    for pair in range(_PAIRS):
        for word, mask, left in _places(bits, pair):
            words[:, word] |= (pairs[:, pair] & mask) << left
    return words.view(blocks, tiles, 32, bits, 4).transpose(2, 3).contiguous()


def _from_words(words: Tensor, bits: int) -> Tensor:
    blocks, tiles = words.shape[:2]
    codes = _from_pairs(words.transpose(2, 3).reshape(-1, bits), bits)
    lanes = codes.view(blocks, tiles, 8, 4, 4, 2, 2, 2, 2, 2)
    return lanes.permute(_FROM_LANES).reshape(blocks * _BLOCK_ROWS, tiles * _TILE_SLOTS)


def _from_pairs(words: Tensor, bits: int) -> Tensor:
    """Unpacks the words of a lane's row tiles, int32 `[n, bits]`, into codes of pairs, uint8 `[n, 16, 2]`."""
    pairs = torch.zeros(words.shape[0], _PAIRS, dtype=torch.int32, device=words.device)
    for pair in range(_PAIRS):
        for word, mask, left in _places(bits, pair):
            # The shift of an int32 repeats its sign, but no further than to bits that the mask leaves out.
            pairs[:, pair] |= words[:, word] >> left & mask
    return torch.stack((pairs & 255, pairs >> 16 & 255), -1).to(torch.uint8)


def _places(bits: int, pair: int) -> list[tuple[int, int, int]]:
    """Lists (word, mask, shift): the masked bits of a pair (codes at bits 0 and 16) go to a word, shifted left."""
    if bits == 3 and pair == 15:
        return [(bit, 0x00010001 << bit, 15 - bit) for bit in range(3)]
    mask = 2**bits - 1
    word, left = (pair // 5, 3 * (pair % 5)) if bits == 3 else divmod(pair * bits, 16)
    return [(word, mask | mask << 16, left)]


def _sort_rows(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Reorders `[N, G]` to `[B, G, 64]`: row 16 r + 8 h + g goes to 8 g + 2 r + h."""
    blocks, groups, _ = shape
    padded = F.pad(values, (0, 0, 0, blocks * _BLOCK_ROWS - values.shape[0]))
    return padded.view(blocks, 8, 8, groups).permute(0, 3, 2, 1).reshape(shape)


def _unsort_rows(values: Tensor, out_features: int) -> Tensor:
    blocks, groups, _ = values.shape
    rows = values.view(blocks, groups, 8, 8).permute(0, 3, 2, 1).reshape(-1, groups)
    return rows[:out_features].contiguous()
