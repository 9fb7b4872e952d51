"""`ProjectionScheme`: how one projection of all experts of a stack is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..formats.experts import ExpertShapes, expert_shapes
from ..formats.packing import CHECKPOINT_LAYOUT
from ..formats.scheme import WeightScheme
from .experts_layout import ExpertsLayout


@dataclass(frozen=True)
class ProjectionScheme:
    """How one projection of all experts is stored.

    Attributes:
        bits: of each expert.
        group_size: input channels that share one scale and zero point, or -1; the same for all experts.
        sym: whether the grids are symmetric.
        activation_bits: 8 rounds the input to 8 bits per token, 16 takes it as it is.
        short_bits: the bits of each expert; one entry if all are equal. Every call of the operator takes them.
    """

    bits: tuple[int, ...]
    group_size: int
    sym: bool
    activation_bits: int
    short_bits: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "short_bits", list(self.bits[:1] if len(set(self.bits)) == 1 else self.bits))

    @classmethod
    def of(cls, schemes: Sequence[WeightScheme], where: str) -> ProjectionScheme:
        """Joins the schemes of the experts.

        Args:
            schemes: of each expert, in order.
            where: what they belong to, for the message.

        Raises:
            ValueError: they differ in more than their bits, or rotate their input.
        """
        shared = {(scheme.group_size, scheme.sym, scheme.activation_bits) for scheme in schemes}
        if len(shared) != 1:
            raise ValueError(
                f"{where}: the experts of a stack may differ in `bits` only, not in `group_size` or `sym`."
            )
        if any(scheme.rotation is not None for scheme in schemes):
            raise ValueError(f"{where}: the input of experts cannot be rotated; remove `rotation`.")
        return cls(tuple(scheme.bits for scheme in schemes), *shared.pop())

    def scheme(self, expert: int) -> WeightScheme:
        """Returns how one expert is stored."""
        return WeightScheme(self.bits[expert], self.group_size, self.sym, None, self.activation_bits)

    def shapes(self, stack: ExpertsLayout, projection: str, layout: int = CHECKPOINT_LAYOUT) -> ExpertShapes:
        """Returns the shapes of the projection's tensors.

        Args:
            stack: sizes of the experts.
            projection: its name.
            layout: of the packed words: checkpoint, CPU or CUDA.
        """
        return expert_shapes(self.bits, *stack.shape(projection), self.group_size, layout)
