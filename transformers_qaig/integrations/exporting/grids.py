"""Converts grids for other formats: zero points, large groups as several small ones, scales in float16."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ...formats.packing import unpack_zero_point
from ...formats.reference import Weight
from .refusals import Refusal
from .saved_model import PackedWeight, SavedModel

LARGEST_ERROR = 0.05
"""The largest error of a weight that an export may make, in steps of its grid."""


def zero_points(weight: Weight) -> Tensor:
    """Returns the codes of zero, uint8 `[N, G]`."""
    if weight.zero is None:
        return torch.full(weight.scale.shape, 1 << (weight.bits - 1), dtype=torch.uint8)
    return unpack_zero_point(weight.zero, weight.bits, weight.out_features)


def split_group(packed: PackedWeight, sizes: Collection[int]) -> int | None:
    """Returns the largest of `sizes` that divides a weight's groups: one group is several with equal scales."""
    group = packed.in_features if packed.scheme.group_size == -1 else packed.scheme.group_size
    return next((size for size in sorted(sizes, reverse=True) if group % size == 0), None)


def repeated(tensor: Tensor, packed: PackedWeight, group_size: int) -> Tensor:
    """Repeats scales or zero points `[N, G]` for groups of `group_size`, which divides the weight's own groups."""
    return tensor.repeat_interleave(packed.in_features // group_size // tensor.shape[1], 1)


def refuse_indivisible_groups(weights: Iterable[PackedWeight], sizes: Collection[int]) -> Iterator[Refusal]:
    """Refuses weights whose groups cannot be split into groups of one of `sizes`."""
    paths = tuple(weight.path for weight in weights if split_group(weight, sizes) is None)
    if paths:
        known = ", ".join(map(str, sorted(sizes)))
        yield Refusal(
            f"the format has groups of {known}, and these groups are no multiple of one",
            "quantize with group_size=32, 64 or 128; a layer needs one of them that divides its input channels",
            paths,
        )


def note_on_float16(saved: SavedModel) -> Iterator[str]:
    """Yields how exact float16 scales are, unless they are all exact."""
    if worst := scales_in_float16(saved)[0]:
        yield f"Scales are rounded to float16: the largest error of a weight is {worst:.4f} of a step of its grid."


def error_in_float16(scale: Tensor, bits: int) -> float:
    """Returns the largest error of a weight, in steps, that scales in float16 make."""
    exact = scale.double()
    relative = (scale.to(torch.float16).double() - exact).abs() / exact.clamp(min=torch.finfo(torch.float64).tiny)
    return float(relative.nan_to_num(torch.inf, torch.inf).max()) * (2**bits - 1)


def scales_in_float16(saved: SavedModel) -> tuple[float, list[Refusal]]:
    """Returns the largest error, in steps, that float16 scales make, and a refusal of those where it is too large.

    Args:
        saved: only its scales are read.
    """
    worst, wrong = 0.0, []
    for packed in saved.packed.values():
        error = error_in_float16(saved.weight(packed).scale, packed.scheme.bits)
        if error > LARGEST_ERROR:
            wrong.append(packed)
        else:
            worst = max(worst, error)
    return worst, list(refuse_float16("the format stores scales in float16", wrong))


def refuse_float16(reason: str, wrong: Sequence[PackedWeight]) -> Iterator[Refusal]:
    """Refuses weights whose scales are too small for float16: those of more bits have smaller ones."""
    if wrong:
        fewer = "with bits=4, which has larger scales, or " if all(w.scheme.bits > 4 for w in wrong) else ""
        yield Refusal(
            f"{reason}, where weights would be off by more than {LARGEST_ERROR} of a step",
            f"quantize {fewer}the model loaded with dtype=torch.float16",
            tuple(packed.path for packed in wrong),
        )
