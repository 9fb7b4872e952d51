"""Entries of a plan, `{"bits", "group_size", "sym"}` and maybe `"rotation"`: what is valid, what it takes on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .nn.hadamard import BLOCKS, MAX_SEED
from .utils.quote import quote

BITS = tuple(range(2, 9))
MIN_GROUP_SIZE, MAX_GROUP_SIZE = 32, 2**31 - 1


def check_plan(plan: Any) -> None:
    """Raise `ValueError` unless `plan` maps at least one path to a whole entry, all values in range."""
    if not isinstance(plan, Mapping) or not plan:
        raise ValueError("`plan` must map weight paths to {bits, group_size, sym}; it is empty or no mapping.")
    for path, entry in plan.items():
        try:
            _check_planned(path, entry)
        except ValueError as error:  # the path is quoted only here: there may be a million
            raise ValueError(f"plan[{quote(path)}]{error}") from None


def _check_planned(path: object, entry: Any) -> None:
    if not isinstance(path, str):
        raise ValueError(": a weight's path is a string.")
    if not isinstance(entry, Mapping) or entry.keys() - {"rotation"} != {"bits", "group_size", "sym"}:
        raise ValueError(f" must hold bits, group_size and sym, maybe rotation, and no more, got {quote(entry)}.")
    check_entry({key: value for key, value in entry.items() if key != "rotation"}, "")
    check_rotation(entry.get("rotation"), "")


def check_entry(entry: Mapping[str, Any], where: str) -> None:
    """Raise `ValueError` unless `bits`, `group_size` and `sym`, where given, are in range."""
    unknown = set(entry) - {"bits", "group_size", "sym"}
    if unknown:
        raise ValueError(f"{where}: unknown {quote(sorted(map(str, unknown)))}; known are bits, group_size and sym.")
    if "bits" in entry and (not is_int(entry["bits"]) or entry["bits"] not in BITS):
        raise ValueError(
            f"{where}: `bits` must be an integer from {BITS[0]} to {BITS[-1]}, got {quote(entry['bits'])}."
        )
    if "group_size" in entry:
        size = entry["group_size"]
        if not is_int(size) or (size != -1 and not MIN_GROUP_SIZE <= size <= MAX_GROUP_SIZE):
            raise ValueError(
                f"{where}: `group_size` must be an integer from {MIN_GROUP_SIZE} to {MAX_GROUP_SIZE}, or -1 for per "
                f"channel, got {quote(size)}."
            )
    if "sym" in entry and not isinstance(entry["sym"], bool):
        raise ValueError(f"{where}: `sym` must be True or False, got {quote(entry['sym'])}.")


def check_rotation(rotation: Any, where: str) -> None:
    """Raise `ValueError` unless `rotation` is None or `{"block", "seed"}`, both in range."""
    if rotation is None:
        return
    if not isinstance(rotation, Mapping) or set(rotation) != {"block", "seed"}:
        raise ValueError(f"{where}: `rotation` must hold exactly block and seed, got {quote(rotation)}.")
    if not is_int(rotation["block"]) or rotation["block"] not in BLOCKS:
        raise ValueError(f"{where}: `rotation` must have a block of {list(BLOCKS)}, got {quote(rotation['block'])}.")
    if not is_int(rotation["seed"]) or not 0 <= rotation["seed"] <= MAX_SEED:
        raise ValueError(f"{where}: `rotation` must have a seed from 0 to 2^63 - 1, got {quote(rotation['seed'])}.")


def fit_group_size(in_features: int, group_size: int) -> int:
    """
    The group size that is used for a width: `group_size` where it divides `in_features`, else the largest divisor of
    `in_features` in [32, group_size], else -1 (one group per output channel).
    """
    if group_size == -1 or group_size >= in_features:
        return -1
    divisors = (d for d in range(group_size, MIN_GROUP_SIZE - 1, -1) if in_features % d == 0)
    return next(divisors, -1)


def stored_bits(entry: Mapping[str, Any], out_features: int, in_features: int, scale_bits: int) -> int:
    """Bits that the codes, scales and zero points of one linear take on disk."""
    groups = 1 if entry["group_size"] == -1 else in_features // entry["group_size"]
    words = out_features * math.ceil(in_features * entry["bits"] / 32)
    zero_words = 0 if entry["sym"] else groups * math.ceil(out_features * entry["bits"] / 32)
    return 32 * (words + zero_words) + scale_bits * out_features * groups


def is_int(value: Any) -> bool:
    """Whether it is an integer, which True and False are not meant to be."""
    return isinstance(value, int) and not isinstance(value, bool)
