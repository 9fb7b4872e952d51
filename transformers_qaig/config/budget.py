"""`BitBudget`: how much the packed weights may take, and how a width is chosen for each of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..formats.scheme import BITS, is_int
from ..utils.quote import quote
from ..utils.suggestion import did_you_mean
from .misplaced import register_settings, remedy
from .plain import plain
from .size import parse_ratio, parse_size

CANDIDATES = (2, 3, 4, 8)
"""Widths to choose from, unless others are given: those with kernels."""
NEAREST = "fisher_rtn"
"""The cost that rounds to nearest, at one width."""
COSTS = ("fisher", NEAREST, "integrated_gradients", "one_at_a_time", "output_error")
DEFAULT_COST = NEAREST
RENAMED_COSTS = {"path": "integrated_gradients", "alone": "one_at_a_time", "error": "output_error"}
"""Costs as release 0.1 called and saved them."""
MOST_BITS = 64
"""The most bits per weight that a budget may allow: nothing is stored wider."""


@dataclass(frozen=True)
class BitBudget:
    """A limit on the packed weights' size, or the whole file's, within which every weight gets its own width.

    Give `bits`, `size` or `uniform`.

    Args:
        bits: Stored bits per packed weight of the language model's blocks, on average and at most. Codes, scales and
            zero points count. What is packed outside the blocks has the bits given for it.
        size: Size of all weights of the saved model, packed or not: bytes, `"3.5GiB"`, or `"4x"` for at most a quarter
            of what the model takes in bfloat16. The vision tower's, the projector's, the head's and the embeddings'
            weights are chosen for, too: a width or none, unless `vision_bits`, `lm_head_bits` or `embedding_bits` says
            it.
        candidates: Widths to choose from, each 2 to 8.
        cost: How the loss of a width is predicted. `"fisher"`: by the squared gradient along the rounding error;
            `"fisher_rtn"`, by default: the same with nearest rounding at one width, from which the others follow;
            `"one_at_a_time"`: the true loss with one layer rounded (slow); `"output_error"`: of the layer;
            `"integrated_gradients"`: along the path of the weights.
        fuse: Whether q, k and v get one width, gate and up one, and so on: engines that fuse them need that.
        uniform: One of the candidates: the blocks' weights take at most what they would if all had this width.

    Raises:
        ValueError: a value out of its range, or not exactly one of `bits`, `size` and `uniform`.
    """

    bits: float | None = None
    size: int | str | None = None
    candidates: tuple[int, ...] = CANDIDATES
    cost: str = DEFAULT_COST
    fuse: bool = False
    uniform: int | None = None

    def __post_init__(self) -> None:
        values = {field.name: plain(getattr(self, field.name), f"budget.{field.name}") for field in fields(self)}
        _check_target(values["bits"], values["size"], values["uniform"])
        values["candidates"] = _checked_candidates(values["candidates"])
        if values["uniform"] is not None and (
            not is_int(values["uniform"]) or values["uniform"] not in values["candidates"]
        ):
            raise ValueError(
                f"`budget`: `uniform` must be one of `candidates`, {values['candidates']}, got "
                f"{quote(values['uniform'])}."
            )
        values["cost"] = _checked_cost(values["cost"])
        if not isinstance(values["fuse"], bool):
            raise ValueError(f"`budget`: `fuse` must be True or False, got {quote(values['fuse'])}.")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def counts_file(self) -> bool:
        """Whether the budget is for the whole file: then weights outside the blocks are chosen for, too."""
        return self.size is not None

    def file_bytes(self, bfloat16: int) -> int:
        """Returns the bytes that the saved model may take.

        Args:
            bfloat16: bytes of the model in bfloat16.

        Raises:
            ValueError: the budget is in bits or a uniform width.
        """
        if self.size is None:
            raise ValueError("`budget`: a budget in bits does not limit the file.")
        ratio = parse_ratio(self.size)
        return parse_size(self.size) if ratio is None else int(bfloat16 / ratio)

    @classmethod
    def of(cls, budget: float | str | Mapping[str, Any] | BitBudget | None) -> BitBudget | None:
        """Makes a budget from what a user gives: bits, a size, a mapping of the arguments, or a budget.

        Args:
            budget: one of these; None for no budget.

        Raises:
            ValueError: it is none of these, a size without a unit, or has an unknown key.
        """
        if budget is None or isinstance(budget, BitBudget):
            return budget
        if isinstance(budget, str):
            if number := re.fullmatch(r"\s*([0-9]{0,9}\.?[0-9]{1,9})\s*(bits?|bpw)?\s*", budget):
                raise ValueError(
                    f"`budget={budget!r}` is no size with a unit. Write budget={number[1]} for bits per weight, a size "
                    f"such as '3.5GiB', or '{number[1]}x' for so many times smaller than bfloat16."
                )
            return cls(size=budget)
        if not isinstance(budget, Mapping):
            return cls(bits=budget)
        known = [field.name for field in fields(cls)]
        for key in budget:
            if key not in known:
                raise ValueError(f"`budget` has no {quote(key)}. {remedy(key, known)}")
        return cls(**budget)

    def to_dict(self) -> dict[str, Any]:
        """Returns what config.json holds."""
        kept = {name: value for name, value in asdict(self).items() if value is not None}
        return {**kept, "candidates": list(self.candidates)}

    def __str__(self) -> str:
        if self.uniform is not None:
            return f"as much as {self.uniform} bits for all"
        return f"{self.bits} bits" if self.bits is not None else str(self.size)


def _check_target(bits: object, size: Any, uniform: object) -> None:
    if sum(value is not None for value in (bits, size, uniform)) != 1:
        raise ValueError("`budget`: `bits`, `size` and `uniform` are ways to say one budget; give exactly one of them.")
    if bits is not None and not (type(bits) in (int, float) and 0 < bits <= MOST_BITS):  # type: ignore[operator]
        raise ValueError(
            f"`budget`: `bits` must be a positive number of at most {MOST_BITS} bits per weight, got {quote(bits)}; "
            "write a size as '3.5GiB' or BitBudget(size=...)."
        )
    if size is not None:
        try:
            if parse_ratio(size) is None:
                parse_size(size)
        except ValueError as error:
            raise ValueError(f"`budget`: {error}") from error


def _checked_candidates(candidates: object) -> tuple[int, ...]:
    """Returns the widths, in order and each once."""
    if isinstance(candidates, list) and 16 in candidates:
        raise ValueError(
            f"`budget`: `candidates` are widths of packed weights, {BITS[0]} to {BITS[-1]}, got {quote(candidates)}. "
            "Under a budget for the whole file, weights outside the blocks may stay as they are anyway. Keep a block's "
            "weights with `modules_to_not_convert`."
        )
    if not isinstance(candidates, list) or not candidates or not all(is_int(b) and b in BITS for b in candidates):
        raise ValueError(
            f"`budget`: `candidates` must be integers from {BITS[0]} to {BITS[-1]} to choose from, such as "
            f"{CANDIDATES}, got {quote(candidates)}."
        )
    return tuple(sorted(set(candidates)))


def _checked_cost(cost: Any) -> str:
    """Returns the cost by today's name."""
    name = RENAMED_COSTS.get(cost, cost) if isinstance(cost, str) else cost
    if name not in COSTS:
        hint = did_you_mean(cost, COSTS)
        raise ValueError(f"`budget`: `cost` must be one of {list(COSTS)}, got {quote(cost)}.{hint}")
    return name


register_settings("BitBudget", [field.name for field in fields(BitBudget)])
DEFAULT_BUDGET = BitBudget(uniform=4, candidates=(3, 4, 8), fuse=True)
"""Where nothing says a width and the recipe attributes widths: kernels have these, and engines may fuse layers."""


def why_widths(budget: BitBudget, widths: Collection[int]) -> str:
    """Returns who chose the widths of layers: the default, or the budget that was given; or why they have one width.

    Args:
        budget: under which costs were measured.
        widths: bits of the blocks' weights.
    """
    is_default = budget == DEFAULT_BUDGET
    by = "by default" if is_default else f"under `budget`: {budget}"
    if len(widths) == 1 and len(budget.candidates) > 1:
        *others, last = budget.candidates
        mix = f"{', '.join(map(str, others))} and {last}"
        same = f"{next(iter(widths))} bits in all blocks"
        return f"{by}; {same}, as no mix of {mix} bits that fits costs the answers less"
    return f"{by}, by what they cost the answers; bits={budget.uniform} turns this off" if is_default else by
