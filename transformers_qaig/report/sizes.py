"""Lists the size of each part of a quantized model, before and after, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..formats.scheme import Plan
from ..plan.coverage import BLOCKS, FILE_HEADERS, Coverage, PartSize
from ..utils.readable import readable_size

SMALL = 0.01
"""Parts below this share of the model's size, and not packed, share a row."""
HEAD = ("part", "bits", "before", "after", "times smaller")
WHOLE = "whole model"


@dataclass(frozen=True)
class PartRow:
    """The size of one part.

    Attributes:
        name: path of the part.
        bits: widths of its packed weights, in order; empty if it stays as it is.
        size: in bits, before and after.
    """

    name: str
    bits: tuple[int, ...]
    size: PartSize

    def cells(self) -> tuple[str, ...]:
        """Returns the row's text under `HEAD`."""
        unpacked = "more tensors" if self.name == FILE_HEADERS else "" if self.name == WHOLE else "not packed"
        shrinks = (self.bits or self.name == WHOLE) and self.size.full != self.size.saved and self.size.saved
        return (
            self.name,
            ", ".join(map(str, self.bits)) or unpacked,
            readable_size(self.size.full),
            readable_size(self.size.saved),
            f"{self.size.full / self.size.saved:.2f}" if shrinks else "",
        )


def part_rows(coverage: Coverage, plan: Plan, *, every_part: bool = False) -> list[PartRow]:
    """Returns the parts of a model, largest first, then the whole of it.

    Args:
        coverage: of the run.
        plan: weight path → scheme, as it was done.
        every_part: also those that are small and not packed, which share a row otherwise.
    """
    rows = [PartRow(name, _widths(name, coverage, plan), size) for name, size in coverage.sizes.items() if size.saved]
    least = 0 if every_part else SMALL * coverage.whole.full
    own = (BLOCKS, FILE_HEADERS)  # headers grow, and other parts do not
    small = [row for row in rows if not row.bits and row.size.full < least and row.name not in own]
    if len(small) > 1:
        total = PartSize(sum(row.size.full for row in small), sum(row.size.saved for row in small))
        rows = [row for row in rows if row not in small] + [PartRow(f"{len(small)} small parts", (), total)]
    return [*rows, PartRow(WHOLE, (), coverage.whole)]


def _widths(part: str, coverage: Coverage, plan: Plan) -> tuple[int, ...]:
    """Returns the widths of a part's packed weights; the blocks have all that are not planned outside of them."""
    extra = coverage.outside_plan
    paths: Iterable[str] = (
        (path for path in plan if path not in extra)
        if part == BLOCKS
        else (path for path in extra if f"{path}.".startswith(f"{part}."))
    )
    return tuple(sorted({(plan[path] if path in plan else extra[path]).bits for path in paths}))
