"""The integer grid of a weight: scales and zero points per group of input channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..formats.reference import round_activations
from ..formats.scheme import WeightScheme

SMALLEST = 1e-12
"""The smallest scale: a group of zeros must have one, too."""


@dataclass(frozen=True)
class QuantGrid:
    """The values that a weight [N, K] may take: `(code - zero_point) * scale` with `code` in 0 … 2^bits - 1.

    Attributes:
        scale: fp32 [N, G], positive, each value exactly representable in the dtype it will be stored in.
        zero_point: fp32 [N, G] of integers in 0 … 2^bits - 1; 2^(bits-1) everywhere if the grid is symmetric.
        bits: bits per code.
        sym: whether the zero point is the fixed middle.
        encode_scale: fp32 [N, G], what a weight is divided by when it is rounded: `scale`, unless there is a gain.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    sym: bool
    encode_scale: Tensor

    @property
    def max_code(self) -> int:
        """The largest code: 2^bits - 1."""
        return 2**self.bits - 1

    def grouped(self, weight: Tensor) -> Tensor:
        """Views [N, K] as [N, G, K/G]."""
        return weight.reshape(weight.shape[0], self.scale.shape[1], -1)

    def encode(self, weight: Tensor) -> Tensor:
        """Rounds a weight [N, K] (fp32) to its nearest code: uint8 [N, K]."""
        return self._codes(weight).to(torch.uint8).reshape(weight.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the values of codes [N, K]: fp32 [N, K]."""
        values = (self.grouped(codes.float()) - self.zero_point.unsqueeze(-1)) * self.scale.unsqueeze(-1)
        return values.reshape(codes.shape)

    def quantize(self, weight: Tensor) -> Tensor:
        """Rounds to nearest and back: fp32 [N, K]."""
        values = self._codes(weight).sub_(self.zero_point.unsqueeze(-1)).mul_(self.scale.unsqueeze(-1))
        return values.reshape(weight.shape)

    def to(self, device: torch.device) -> QuantGrid:
        """Returns the grid on a device."""
        scale, zero = self.scale.to(device), self.zero_point.to(device)
        return replace(
            self,
            scale=scale,
            zero_point=zero,
            encode_scale=scale if self.encode_scale is self.scale else self.encode_scale.to(device),
        )

    def rows(self, index: Any) -> QuantGrid:
        """Returns the grid of the rows in `index`."""
        return replace(
            self, scale=self.scale[index], zero_point=self.zero_point[index], encode_scale=self.encode_scale[index]
        )

    @staticmethod
    def cat(grids: Sequence[QuantGrid]) -> QuantGrid:
        """Joins the rows of several grids, which agree in bits and symmetry."""
        scale, zero, step = (
            torch.cat([getattr(grid, name) for grid in grids]) for name in ("scale", "zero_point", "encode_scale")
        )
        return replace(grids[0], scale=scale, zero_point=zero, encode_scale=step)

    def _codes(self, weight: Tensor) -> Tensor:
        scaled = self.grouped(weight) / self.encode_scale.unsqueeze(-1)
        return scaled.round_().add_(self.zero_point.unsqueeze(-1)).clamp_(0, self.max_code)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [N, K] as it is stored.

    Attributes:
        grid: its values.
        codes: uint8 [N, K], 0 … 2^bits - 1.
        source: fp32 [N, K], what was rounded to nearest to give the codes, where that is not the weight itself.
    """

    grid: QuantGrid
    codes: Tensor
    source: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """Returns the dequantized weight, fp32 [N, K]."""
        return self.grid.decode(self.codes)

    def to(self, device: torch.device) -> QuantizedWeight:
        """Returns the weight on a device."""
        source = None if self.source is None else self.source.to(device)
        return QuantizedWeight(self.grid.to(device), self.codes.to(device), source)

    def rows(self, index: Any) -> QuantizedWeight:
        """Returns the rows in `index`."""
        return QuantizedWeight(
            self.grid.rows(index), self.codes[index], None if self.source is None else self.source[index]
        )

    def check_range(self, storage_dtype: torch.dtype, layer: str) -> None:
        """Raises `ValueError`, with the name `layer`, if a value overflows the dtype that the weight is stored in."""
        grid, limit = self.grid, torch.finfo(storage_dtype).max
        if float((grid.scale * torch.maximum(grid.zero_point, grid.max_code - grid.zero_point)).max()) <= limit:
            return  # no code can
        largest = float(self.values.abs().max())
        if largest > limit:
            name = str(storage_dtype).removeprefix("torch.")
            raise ValueError(
                f"{layer} overflows {name}: rounded to {grid.bits} bits its largest value is {largest:,.0f}, "
                f"and {name} ends at {limit:,.0f}. Load the model with dtype=torch.bfloat16 or dtype=torch.float32."
            )

    @staticmethod
    def cat(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
        """Joins the rows of several weights, all with a source or all without."""
        sources = [part.source for part in parts if part.source is not None]
        return QuantizedWeight(
            QuantGrid.cat([part.grid for part in parts]),
            torch.cat([part.codes for part in parts]),
            torch.cat(sources) if sources else None,
        )


def grid_arguments(scheme: WeightScheme, storage_dtype: torch.dtype, include_zero: bool) -> dict[str, Any]:
    """Returns what [`minmax_grid`] takes beside a weight that is stored as `scheme` says."""
    return {
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "sym": scheme.sym,
        "storage_dtype": storage_dtype,
        "include_zero": include_zero,
    }


def minmax_grid(
    weight: Tensor,
    *,
    bits: int,
    group_size: int,
    sym: bool,
    storage_dtype: torch.dtype,
    include_zero: bool = False,
    shrink: Tensor | float = 1.0,
    gain: Tensor | None = None,
) -> QuantGrid:
    """Makes the grid that spans each group's range.

    scale = (max - min) / (2^b - 1) and zero = clamp(-round(min / scale)); symmetric: scale = max|w| / (2^(b-1) - 1).
    These are the formulas of the paper's code for weights alone.

    Args:
        weight: fp32 [N, K], finite.
        bits: 2 to 8.
        group_size: divides K, or -1 for one group per row.
        sym: symmetric around zero.
        storage_dtype: the scale is rounded to it before the zero point and any code is chosen.
        include_zero: widen the range to hold zero. Without it a group that is all positive clips at its zero point.
        shrink: factor on the range, a number or [N, G].
        gain: factor on the scale after the codes are chosen, [N, G].

    Raises:
        ValueError: a group size that does not divide K, or a weight that is not finite.
    """
    grid: dict[str, Any] = {"bits": bits, "sym": sym, "storage_dtype": storage_dtype, "include_zero": include_zero}
    return _grid_of(*_ranges(weight, group_size), shrink, gain, **grid)


def minmax_grids(weight: Tensor, shrinks: Sequence[float], *, group_size: int, **grid: Any) -> list[QuantGrid]:
    """Makes the grids that [`minmax_grid`] makes with each of these factors; it reads the weight once."""
    low, high = _ranges(weight, group_size)
    return [_grid_of(low, high, shrink, **grid) for shrink in shrinks]


def _ranges(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Returns the least and the largest value of each group, fp32 [N, G]."""
    rows, columns = weight.shape
    if group_size != -1 and columns % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {columns} input channels.")
    groups = weight.reshape(rows, 1 if group_size == -1 else columns // group_size, -1)
    low, high = groups.amin(-1), groups.amax(-1)  # on the CPU `aminmax` takes five times as long
    if not (torch.isfinite(low) & torch.isfinite(high)).all():
        raise ValueError("the weight holds values that are not finite.")
    return low, high


def _grid_of(
    low: Tensor,
    high: Tensor,
    shrink: Tensor | float,
    gain: Tensor | None = None,
    *,
    bits: int,
    sym: bool,
    storage_dtype: torch.dtype,
    include_zero: bool = False,
) -> QuantGrid:
    if sym:
        scale = torch.maximum(low.abs(), high.abs()) * shrink / max(2 ** (bits - 1) - 1, 1)
    else:
        if include_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        low, high = low * shrink, high * shrink
        scale = (high - low) / (2**bits - 1)
    scale = storable(scale, storage_dtype, up=True)
    if sym:
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        zero = (-(low / scale).round()).clamp(0, 2**bits - 1)
    return QuantGrid(scale if gain is None else storable(scale * gain, storage_dtype), zero, bits, sym, scale)


def fake_quantize_tokens(x: Tensor) -> Tensor:
    """Rounds x `[..., K]` to 8 bits per token as packed layers do; the gradient is that of x."""
    return x + (round_activations(x) - x).detach()


def storable(scale: Tensor, dtype: torch.dtype, *, up: bool = False) -> Tensor:
    """Rounds scales to the storage dtype, away from zero and infinity: fp32 values that the dtype holds exactly.

    Subnormal values are used: the smallest other value of float16, 2^-14, is too large for 8 bits of a weight below
    0.01. They are coarse. With `up` they are rounded up, so that the range that they span does not shrink.
    """
    limits = torch.finfo(dtype)
    unit = limits.tiny * limits.eps
    scale = scale.clamp(max(SMALLEST, unit), limits.max)
    if up:
        scale = torch.where(scale < limits.tiny, (scale / unit).ceil() * unit, scale)
    return scale.to(dtype).float()
