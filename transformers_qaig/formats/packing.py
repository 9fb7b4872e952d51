"""Packs codes into 32-bit words and unpacks them: the checkpoint layout of a packed weight.

The layout is the one compressed-tensors calls `pack-quantized`. A row of K codes of `bits` bits is one dense bit
stream: code i takes the bits [i * bits, (i + 1) * bits), least significant bit first, and a code may straddle two
words. Words are int32; a row ends with zero bits up to the next full word. Zero points are packed the same way, but
along the output channels (N).

Codes are unsigned, 0 to 2^bits - 1. compressed-tensors speaks of signed values and stores value + 2^(bits - 1): the
same bits.

Everything here works on bytes instead of words: 8 codes fill exactly `bits` bytes, so a code touches at most two bytes
of a short, fixed pattern. (Words are taken as little-endian bytes.)
"""

import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 2, 8
# Orders of the packed tensors: this module's, and those of csrc/cpu/layout.h and csrc/cuda/layout.h.
CHECKPOINT_LAYOUT, CPU_LAYOUT, CUDA_LAYOUT = 0, 1, 2
KERNEL_BITS = (2, 3, 4, 8)  # widths for which there are such orders
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CHUNK_CODES = 1 << 21  # codes handled at once, so that temporaries stay small whatever the size of the weight


def check_bits(bits: int) -> None:
    """Raises `ValueError` unless `bits` is a width the layout supports (2 to 8)."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be between {MIN_BITS} and {MAX_BITS}, got {bits}")


def num_words(num_codes: int, bits: int) -> int:
    """Returns the number of words that hold `num_codes` codes: ceil(num_codes * bits / 32)."""
    return -(-num_codes * bits // 32)


def num_groups(in_features: int, group_size: int) -> int:
    """Returns the number of quantization groups in a row; `group_size` -1 means one group per row (per channel).

    Raises:
        ValueError: if `group_size` is neither -1 nor a positive divisor of `in_features`.
    """
    if group_size == -1:
        return 1
    if group_size < 1 or in_features % group_size:
        raise ValueError(
            f"group_size must be -1 (per channel) or divide in_features={in_features}, got {group_size}: "
            "choose a divisor, or -1"
        )
    return in_features // group_size


def packed_shapes(
    out_features: int, in_features: int, bits: int, group_size: int, sym: bool
) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """Returns shape and dtype of every packed tensor of a linear layer, by its name in the checkpoint.

    The dtype of `weight_scale` is None: any of `SCALE_DTYPES`. `weight_zero_point` is absent when `sym`.

    Raises:
        ValueError: if a size is not positive, `bits` is outside 2 .. 8, or `group_size` does not divide `in_features`.
    """
    check_bits(bits)
    if out_features < 1 or in_features < 1:
        raise ValueError(f"out_features and in_features must be positive, got {out_features} and {in_features}")
    groups = num_groups(in_features, group_size)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {
        "weight_packed": ((out_features, num_words(in_features, bits)), torch.int32),
        "weight_scale": ((out_features, groups), None),
    }
    if not sym:
        shapes["weight_zero_point"] = ((num_words(out_features, bits), groups), torch.int32)
    shapes["weight_shape"] = ((2,), torch.int64)
    return shapes


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs codes along their last dimension.

    Args:
        codes: uint8 `[N, K]`, values 0 .. 2^bits - 1.
        bits: 2 to 8.

    Returns:
        int32 `[N, ceil(K * bits / 32)]`, on the device of `codes`.

    Raises:
        ValueError: on a wrong dtype, rank or width, or a code that does not fit in `bits`.
    """
    check_bits(bits)
    _check_matrix("codes", codes, torch.uint8)
    rows, columns = codes.shape
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"codes must be in 0..{2**bits - 1} for bits={bits}, found {int(codes.max())}")
    words = torch.zeros(rows, num_words(columns, bits), dtype=torch.int32, device=codes.device)
    for start, stop in row_chunks(rows, columns):
        row_bytes = _codes_to_bytes(codes[start:stop], bits)
        target = words[start:stop].view(torch.uint8)
        length = min(row_bytes.shape[1], target.shape[1])  # beyond either end there are only zero bits
        target[:, :length] = row_bytes[:, :length]
    return words


def unpack(words: Tensor, bits: int, in_features: int) -> Tensor:
    """Unpacks words, as the inverse of `pack`.

    Args:
        words: int32 `[N, ceil(in_features * bits / 32)]`.
        bits: 2 to 8.
        in_features: K, the number of codes per row.

    Returns:
        uint8 `[N, in_features]`.

    Raises:
        ValueError: on a wrong dtype, shape or width.
    """
    check_bits(bits)
    _check_matrix("words", words, torch.int32)
    rows = words.shape[0]
    if words.shape[1] != num_words(in_features, bits):
        raise ValueError(
            f"words must have {num_words(in_features, bits)} columns for in_features={in_features} at bits={bits}, "
            f"got shape {tuple(words.shape)}"
        )
    codes = torch.empty(rows, in_features, dtype=torch.uint8, device=words.device)
    for start, stop in row_chunks(rows, in_features):
        # Flat first: a matrix of one column counts as contiguous whatever its stride, and cannot be seen as bytes then.
        row_bytes = words[start:stop].contiguous().reshape(-1).view(torch.uint8).view(stop - start, -1)
        codes[start:stop] = _bytes_to_codes(row_bytes, bits, in_features)
    return codes


def pack_zero_point(zero: Tensor, bits: int) -> Tensor:
    """Packs zero points uint8 `[N, G]` along N: int32 `[ceil(N * bits / 32), G]`. Raises as `pack` does."""
    _check_matrix("zero", zero, torch.uint8)
    return pack(zero.t(), bits).t().contiguous()


def unpack_zero_point(words: Tensor, bits: int, out_features: int) -> Tensor:
    """Inverts `pack_zero_point`: int32 `[ceil(out_features * bits / 32), G]` to uint8 `[out_features, G]`."""
    _check_matrix("words", words, torch.int32)
    return unpack(words.t(), bits, out_features).t().contiguous()


def row_chunks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Splits rows into consecutive `(start, stop)` ranges of about `_CHUNK_CODES` elements each, at least one row."""
    step = max(1, _CHUNK_CODES // max(1, columns))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def column_chunks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Splits columns into consecutive `(start, stop)` ranges of at most `_CHUNK_CODES` elements, or of 32 columns.

    A range of 128 columns or more is a multiple of 128: it cuts no group of the usual size, whose scales are read once.
    """
    step = max(1, _CHUNK_CODES // max(1, rows))
    unit = 128 if step >= 128 else 32
    step = max(step // unit * unit, unit)
    return [(start, min(start + step, columns)) for start in range(0, columns, step)]


def _check_matrix(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or tensor.dim() != 2:
        raise ValueError(f"{name} must be a 2-D {dtype} tensor, got {tensor.dtype} of shape {tuple(tensor.shape)}")


def _byte_pattern(bits: int) -> list[tuple[int, int]]:
    """Lists the (byte, shift) at which each of 8 consecutive codes begins in its `bits` bytes."""
    return [divmod(i * bits, 8) for i in range(8)]


def _codes_to_bytes(codes: Tensor, bits: int) -> Tensor:
    """Packs uint8 codes `[n, K]` into the bytes of their bit stream, `[n, ceil(K / 8) * bits]`."""
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % 8)).reshape(rows, -1, 8)
    out = torch.zeros(rows, padded.shape[1], bits, dtype=torch.uint8, device=codes.device)
    for i, (byte, shift) in enumerate(_byte_pattern(bits)):
        out[..., byte] |= padded[..., i] << shift
        if shift + bits > 8:
            out[..., byte + 1] |= padded[..., i] >> (8 - shift)
    return out.view(rows, -1)


def _bytes_to_codes(row_bytes: Tensor, bits: int, in_features: int) -> Tensor:
    """Inverts `_codes_to_bytes`; `row_bytes` may be longer or shorter than a multiple of `bits` by padding."""
    rows, length = row_bytes.shape
    units = -(-in_features // 8)
    padded = torch.nn.functional.pad(row_bytes, (0, units * bits - length)).view(rows, units, bits)
    codes = torch.empty(rows, units, 8, dtype=torch.uint8, device=row_bytes.device)
    for i, (byte, shift) in enumerate(_byte_pattern(bits)):
        value = padded[..., byte] >> shift
        if shift + bits > 8:
            value |= padded[..., byte + 1] << (8 - shift)
        codes[..., i] = value & (2**bits - 1)
    return codes.view(rows, -1)[:, :in_features]
