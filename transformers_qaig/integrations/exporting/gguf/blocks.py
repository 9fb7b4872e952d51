"""Packed weights as GGUF's blocks of 32 codes.

| ours | block | how exact |
| --- | --- | --- |
| 2 and 3 bits; 4 bits, symmetric | Q4_0: scale, codes of zero 8 | exact, if the scale is a float16 |
| 4 bits, asymmetric | Q4_1: scale, minimum | the minimum is rounded to float16 |
| 5, 6 and 7 bits; 8 bits, symmetric | Q8_0: scale, signed codes | exact, if the scale is a float16 |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from ....formats.packing import unpack
from ..grids import LARGEST_ERROR, error_in_float16, refuse_float16, refuse_indivisible_groups, repeated, zero_points
from ..refusals import NO_OTHERS, Refusal, refuse_where
from ..saved_model import PackedWeight, SavedModel

BLOCK = 32
BYTES = {GGMLQuantizationType.Q4_0: 18, GGMLQuantizationType.Q4_1: 20, GGMLQuantizationType.Q8_0: 34}
"""Bytes of a block."""


def type_of(packed: PackedWeight) -> GGMLQuantizationType:
    """Returns the type of block that holds a weight."""
    bits, sym = packed.scheme.bits, packed.scheme.sym
    if bits <= 3 or (bits == 4 and sym):
        return GGMLQuantizationType.Q4_0
    return GGMLQuantizationType.Q4_1 if bits == 4 else GGMLQuantizationType.Q8_0


def refusals(saved: SavedModel) -> Iterator[Refusal]:
    """Yields weights that no block holds."""
    weights = list(saved.packed.values())
    yield from refuse_where(
        weights,
        lambda weight: weight.scheme.bits == 8 and not weight.scheme.sym,
        "a difference of an 8-bit code and its zero point does not fit in Q8_0",
        f"quantize again with bits=4 and {NO_OTHERS}, or with sym=True",
    )
    yield from refuse_indivisible_groups(weights, (BLOCK,))
    wrong = [packed for packed in weights if _error(saved, packed) > LARGEST_ERROR]
    yield from refuse_float16("blocks have scales in float16", wrong)


def notes(saved: SavedModel) -> Iterator[str]:
    """Yields how many weights each type holds, and the largest error."""
    types = Counter(type_of(packed).name for packed in saved.packed.values())
    yield "Blocks: " + ", ".join(f"{count} weights as {name}" for name, count in types.items()) + "."
    worst = max((_error(saved, packed) for packed in saved.packed.values()), default=0.0)
    if worst:
        yield f"Scales and minima are rounded to float16: the largest error of a weight is {worst:.4f} of a step."


def _error(saved: SavedModel, packed: PackedWeight) -> float:
    """Returns the largest error of a weight, in steps."""
    weight = saved.weight(packed)
    error = error_in_float16(weight.scale, packed.scheme.bits)
    if type_of(packed) is not GGMLQuantizationType.Q4_1:
        return error
    exact = weight.scale.double() * zero_points(weight)
    step = weight.scale.double().clamp(min=torch.finfo(torch.float64).tiny)
    minimum = (exact.to(torch.float16).double() - exact).abs() / step
    return error + float(minimum.nan_to_num(torch.inf, torch.inf).max())


def blocks(saved: SavedModel, packed: PackedWeight, rows: Tensor | None = None) -> NDArray[np.uint8]:
    """Returns the bytes of a weight's blocks, uint8 `[N, K / 32 * bytes of a block]`.

    Args:
        saved: the model.
        packed: the weight.
        rows: indices of its rows, in the order in which they are written; None for all as they are.
    """
    weight, kind = saved.weight(packed), type_of(packed)
    codes = unpack(weight.packed, weight.bits, weight.in_features)
    scale, zero = (repeated(tensor, packed, BLOCK) for tensor in (weight.scale, zero_points(weight)))
    if rows is not None:
        codes, scale, zero = codes[rows], scale[rows], zero[rows]
    grouped = codes.view(len(codes), -1, BLOCK)
    parts = [_halves(scale)]
    if kind is GGMLQuantizationType.Q4_1:
        parts += [_halves(-scale.double() * zero), _nibbles(grouped)]
    else:
        signed = grouped.to(torch.int16) - zero[..., None].to(torch.int16)
        is_nibble = kind is GGMLQuantizationType.Q4_0
        parts.append(
            _nibbles((signed + 8).to(torch.uint8)) if is_nibble else signed.to(torch.int8).numpy().view(np.uint8)
        )
    made: NDArray[np.uint8] = np.concatenate(parts, -1).reshape(len(codes), -1)
    return made


def _halves(values: Tensor) -> NDArray[np.uint8]:
    """Returns the bytes of float16 values `[N, G]` as `[N, G, 2]`."""
    return values.to(torch.float16).contiguous().numpy()[..., None].view(np.uint8)


def _nibbles(codes: Tensor) -> NDArray[np.uint8]:
    """Packs codes `[N, G, 32]` of 4 bits: byte i has code i in its low half and code i + 16 in its high half."""
    low, high = codes[..., : BLOCK // 2], codes[..., BLOCK // 2 :]
    return (low | high << 4).contiguous().numpy()
