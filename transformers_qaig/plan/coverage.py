"""Counts how much of a model a plan packs, and how many bits each part takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..formats.scheme import Plan, WeightScheme
from ..utils.errors import SettingError
from ..utils.old_names import warn_of_old_name
from .allocate import SchemeOption

BLOCKS, FILE_HEADERS = "language model's blocks", "file headers"


@dataclass
class PartSize:
    """The bits of a part of the model: `full` before, `saved` in the quantized file."""

    full: int = 0
    saved: int = 0


@dataclass(frozen=True)
class OutsideWeight:
    """A weight outside the blocks for which a budget chooses.

    Attributes:
        part: path of the part that it is in.
        elements: of the weight.
        also: path of a head that is one tensor with it; empty if there is none.
    """

    part: str
    elements: int
    also: str = ""


@dataclass
class Coverage:
    """How much of the language model's blocks a plan packs, and how much the whole model takes.

    Weights are counted as elements of parameters with two or more dims.

    Attributes:
        packed, total: elements packed, elements in all blocks (3-D expert stacks included).
        excluded: of `total`, elements that `modules_to_not_convert` lists.
        stored_bits: of the packed weights: codes, scales and zero points; 0 until their widths are chosen.
        skipped: path of every block weight that stays as it is → (elements, reason).
        unpacked: elements outside the blocks that stay as they are, by the path of the part.
        outside_plan: plan of what is packed outside the blocks: tower and projector, embeddings, head. What a budget
            chooses is in it once it is chosen.
        outside_choices: path of every weight outside the blocks for which a budget chooses → the weight.
        parts: size of each part, by its path; the blocks (under `BLOCKS`) without their packed weights, other parts
            without weights that are yet to be chosen for. Files' headers (`FILE_HEADERS`) are counted where a file is
            to be written.
        bfloat16: bits of the model in bfloat16, without headers.
        unused: sentences about what the checkpoint holds and the model's class has no module for.
    """

    packed: int = 0
    total: int = 0
    excluded: int = 0
    stored_bits: float = 0.0
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict)
    unpacked: dict[str, int] = field(default_factory=dict)
    outside_plan: Plan = field(default_factory=dict)
    outside_choices: dict[str, OutsideWeight] = field(default_factory=dict)
    parts: dict[str, PartSize] = field(default_factory=dict)
    bfloat16: int = 0
    unused: list[str] = field(default_factory=list)

    @property
    def extra_plan(self) -> Plan:
        """`outside_plan`, as an earlier version called it."""
        warn_of_old_name("Coverage.extra_plan", "outside_plan")
        return self.outside_plan

    @property
    def share(self) -> float:
        """`packed_fraction`, as an earlier version called it."""
        warn_of_old_name("Coverage.share", "packed_fraction")
        return self.packed_fraction

    @property
    def packed_fraction(self) -> float:
        """The fraction of the blocks' elements that are packed, 0 to 1."""
        return self.packed / self.total if self.total else 0.0

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per packed weight."""
        return self.stored_bits / self.packed if self.packed else 0.0

    @property
    def other_bits(self) -> int:
        """The bits of the saved model beside the blocks' packed weights: every other tensor, and headers."""
        return sum(part.saved for part in self.parts.values())

    @property
    def to_choose(self) -> int:
        """Elements of all weights that a budget chooses for."""
        return self.packed + sum(weight.elements for weight in self.outside_choices.values())

    def plan_of(self, schemes: Plan) -> Plan:
        """Adds to chosen schemes what is planned outside the blocks anyway, and a head that is tied."""
        tied = {weight.also: schemes[p] for p, weight in self.outside_choices.items() if weight.also and p in schemes}
        return {**schemes, **tied, **self.outside_plan}

    def with_choice(self, chosen: Mapping[str, SchemeOption]) -> Coverage:
        """Returns the coverage once a budget has chosen.

        Args:
            chosen: weight path → how it is stored, of all weights that the budget chooses for.
        """
        parts = {name: replace(size) for name, size in self.parts.items()}
        unpacked, outside = dict(self.unpacked), dict[str, WeightScheme]()
        for path, weight in self.outside_choices.items():
            option = chosen[path]
            parts[weight.part].saved += option.size
            if option.scheme is None:
                unpacked[weight.part] = unpacked.get(weight.part, 0) + weight.elements
            else:
                outside |= dict.fromkeys([path, *([weight.also] if weight.also else [])], option.scheme)
        stored = sum(option.size for path, option in chosen.items() if path not in self.outside_choices)
        plan = {**self.outside_plan, **outside}
        return replace(self, stored_bits=stored, parts=parts, unpacked=unpacked, outside_plan=plan)

    @property
    def sizes(self) -> dict[str, PartSize]:
        """The size of each part, the blocks with their packed weights; largest first."""
        sizes = {
            name: PartSize(part.full, part.saved + round(self.stored_bits) * (name == BLOCKS))
            for name, part in self.parts.items()
        }
        return dict(sorted(sizes.items(), key=lambda item: -item[1].full))

    @property
    def whole(self) -> PartSize:
        """The size of the whole model."""
        sizes = self.sizes.values()
        return PartSize(sum(size.full for size in sizes), sum(size.saved for size in sizes))

    def check_minimum(self, min_coverage: float) -> None:
        """Raises `ValueError`, which names what would be left out, if too few weights are packed.

        Args:
            min_coverage: the share of the weights, without those that the user excluded, that must be packed.
        """
        asked = self.total - self.excluded
        if asked and self.packed / asked >= min_coverage:
            return
        largest = sorted(self.skipped.items(), key=lambda item: -item[1][0])[:8]
        lines = [f"  {path}: {size:,} weights, {reason}" for path, (size, reason) in largest]
        if len(self.skipped) > len(lines):
            lines.append(f"  and {len(self.skipped) - len(lines)} more")
        raise SettingError(
            f"Only {self.packed / max(asked, 1):.1%} of the {asked:,} weights in the language model's blocks would be "
            f"packed; `min_coverage` asks for {min_coverage:.1%}. Left out:\n" + "\n".join(lines) + "\n"
            "Lower `min_coverage` in CalibrationConfig if that is what you want."
        )
