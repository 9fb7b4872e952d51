"""`WeightScheme`: how one weight is stored. `Plan`: a scheme for every packed weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..utils.quote import quote

BITS = tuple(range(2, 9))
MIN_GROUP_SIZE, MAX_GROUP_SIZE = 32, 2**31 - 1
BLOCKS = (16, 32, 64, 128, 256)
"""Channels that a rotation may transform together."""
MAX_SEED = (1 << 63) - 1
_REQUIRED = {"bits", "group_size", "sym"}


class Rotation(NamedTuple):
    """The rotation of a layer's input (`transformers_qaig.formats.hadamard`).

    Attributes:
        block: channels that are transformed together, one of `BLOCKS`, a divisor of the input channels.
        seed: of the signs, 0 to 2^63 - 1.
    """

    block: int
    seed: int

    def check(self, in_features: int) -> None:
        """Raises `ValueError` if this is no rotation of `in_features` channels."""
        if self.block not in BLOCKS or in_features % self.block:
            raise ValueError(
                f"rotation: block must be one of {BLOCKS} that divides in_features={in_features}, got {self.block}"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"rotation: seed must be between 0 and 2^63 - 1, got {self.seed}")


@dataclass(frozen=True)
class WeightScheme:
    """How one weight is stored, and what happens to its layer's input.

    Attributes:
        bits: of a code, 2 to 8.
        group_size: input channels that share one scale and zero point, at least 32; -1: all of a row.
        sym: whether the grid is symmetric around zero, without zero points.
        rotation: what the input is rotated by; the weight is stored rotated, too.
        activation_bits: 8 rounds the input to 8 bits per token, 16 takes it as it is.
    """

    bits: int
    group_size: int
    sym: bool = False
    rotation: Rotation | None = None
    activation_bits: int = 16

    @classmethod
    def from_dict(cls, scheme: Any, where: str, activation_bits: int = 16) -> WeightScheme:
        """Reads the scheme in an entry of a plan, as config.json holds it.

        Args:
            scheme: `{"bits", "group_size", "sym"}`, and maybe `"rotation": {"block", "seed"}`.
            where: what it belongs to, for the message: `plan['model.layers.0.mlp.up_proj']`.
            activation_bits: of the whole model, which has its own field in config.json.

        Raises:
            ValueError: a field that is missing, unknown or out of range.
        """
        if not isinstance(scheme, Mapping) or set(scheme) - {"rotation"} != _REQUIRED:
            raise ValueError(
                f"{where} must hold bits, group_size and sym, maybe rotation, and no more, got {quote(scheme)}."
            )
        fields = {key: scheme[key] for key in ("bits", "group_size", "sym")}
        check_fields(fields, where)
        return cls(**fields, rotation=_rotation(scheme.get("rotation"), where), activation_bits=activation_bits)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of a plan in config.json, without `activation_bits`."""
        fields: dict[str, Any] = {"bits": self.bits, "group_size": self.group_size, "sym": self.sym}
        return fields if self.rotation is None else {**fields, "rotation": self.rotation._asdict()}

    def check(self, where: str) -> None:
        """Raises `ValueError`, which names `where`, unless bits, group size and symmetry are in range."""
        check_fields({"bits": self.bits, "group_size": self.group_size, "sym": self.sym}, where)

    def fitted(self, in_features: int) -> WeightScheme:
        """Returns the scheme with a group size that fits a row of `in_features` channels, see [`fit_group_size`]."""
        return replace(self, group_size=fit_group_size(in_features, self.group_size))

    def num_groups(self, in_features: int) -> int:
        """Returns the number of quantization groups of a row of `in_features` channels."""
        return 1 if self.group_size == -1 else in_features // self.group_size

    def stored_bits(self, out_features: int, in_features: int, scale_bits: int) -> int:
        """Returns the bits that the codes, scales and zero points of one weight take on disk."""
        groups = self.num_groups(in_features)
        words = out_features * math.ceil(in_features * self.bits / 32)
        zero_words = 0 if self.sym else groups * math.ceil(out_features * self.bits / 32)
        return 32 * (words + zero_words) + scale_bits * out_features * groups


Plan = Mapping[str, WeightScheme]
"""Weight path (without the final `.weight`) → how it is stored. It is never changed in place."""


def parse_plan(plan: Any, activation_bits: int = 16) -> dict[str, WeightScheme]:
    """Reads a plan in a mapping of weight paths to entries, as users give it and config.json holds it.

    Args:
        plan: at least one entry; see [`WeightScheme.from_dict`].
        activation_bits: of every layer.

    Raises:
        ValueError: naming the path whose entry is wrong.
    """
    if not isinstance(plan, Mapping) or not plan:
        raise ValueError("`plan` must map weight paths to {bits, group_size, sym}; it is empty or no mapping.")
    return {path: _planned(path, entry, activation_bits) for path, entry in plan.items()}


def _planned(path: object, entry: Any, activation_bits: int) -> WeightScheme:
    try:
        if not isinstance(path, str):
            raise ValueError(": a weight's path is a string.")
        return WeightScheme.from_dict(entry, "", activation_bits)
    except ValueError as error:  # the path is quoted only here: there may be a million
        raise ValueError(f"plan[{quote(path)}]{error}") from None


def plan_to_dict(plan: Plan) -> dict[str, dict[str, Any]]:
    """Inverts [`parse_plan`]: returns what config.json holds."""
    return {path: scheme.to_dict() for path, scheme in plan.items()}


def inside(plan: Plan, path: str) -> dict[str, WeightScheme]:
    """Returns the part of a plan below the module at `path`, by the paths within it."""
    prefix = f"{path}."
    return {name.removeprefix(prefix): scheme for name, scheme in plan.items() if name.startswith(prefix)}


def check_fields(fields: Mapping[str, Any], where: str) -> None:
    """Raises `ValueError`, which names `where`, unless `bits`, `group_size` and `sym`, where given, are in range."""
    unknown = set(fields) - _REQUIRED
    if unknown:
        raise ValueError(
            f"{where} has no {quote(sorted(map(str, unknown)))}: it says how a weight is stored, by `bits`, "
            "`group_size` and `sym`. Leave out anything else, which holds for the whole model."
        )
    if "bits" in fields and (not is_int(fields["bits"]) or fields["bits"] not in BITS):
        raise ValueError(
            f"{where}: `bits` must be an integer from {BITS[0]} to {BITS[-1]}, got {quote(fields['bits'])}."
        )
    if "group_size" in fields:
        size = fields["group_size"]
        if not is_int(size) or (size != -1 and not MIN_GROUP_SIZE <= size <= MAX_GROUP_SIZE):
            raise ValueError(
                f"{where}: `group_size` must be an integer from {MIN_GROUP_SIZE} to {MAX_GROUP_SIZE}, or -1 for per "
                f"channel, got {quote(size)}."
            )
    if "sym" in fields and not isinstance(fields["sym"], bool):
        raise ValueError(f"{where}: `sym` must be True or False, got {quote(fields['sym'])}.")


def _rotation(rotation: Any, where: str) -> Rotation | None:
    if rotation is None:
        return None
    if not isinstance(rotation, Mapping) or set(rotation) != {"block", "seed"}:
        raise ValueError(f"{where}: `rotation` must hold exactly block and seed, got {quote(rotation)}.")
    if not is_int(rotation["block"]) or rotation["block"] not in BLOCKS:
        raise ValueError(f"{where}: `rotation` must have a block of {list(BLOCKS)}, got {quote(rotation['block'])}.")
    if not is_int(rotation["seed"]) or not 0 <= rotation["seed"] <= MAX_SEED:
        raise ValueError(f"{where}: `rotation` must have a seed from 0 to 2^63 - 1, got {quote(rotation['seed'])}.")
    return Rotation(**rotation)


def fit_group_size(in_features: int, group_size: int) -> int:
    """Returns the group size that is used for a width.

    Returns:
        `group_size` where it divides `in_features`, else the largest divisor of `in_features` in [32, group_size],
        else -1 (one group per output channel).
    """
    if group_size == -1 or group_size >= in_features:
        return -1
    divisors = (d for d in range(group_size, MIN_GROUP_SIZE - 1, -1) if in_features % d == 0)
    return next(divisors, -1)


def is_int(value: Any) -> bool:
    """Whether it is an integer; True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool)
