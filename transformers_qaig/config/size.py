"""Parses sizes that people write: `"3.5GiB"` as bytes, `"4x"` as a ratio."""

from __future__ import annotations

import re

from ..utils.quote import quote

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_LONGEST_SIZE = 40  # characters
_FEWEST_BYTES = 10**6
MOST_RATIO = 64
"""The most times that a file may be smaller than in bfloat16: nothing is stored so narrow."""


def parse_memory(size: int | str) -> int:
    """Returns the bytes of a size as [`parse_size`] does, but refuses a small one that names no unit.

    Raises:
        ValueError: it is no size, or a number below a million without a unit: `3.5` is meant as gigabytes.
    """
    value = parse_size(size)
    if value < _FEWEST_BYTES and not re.search("[a-zA-Z]", str(size)):
        raise ValueError(f"{quote(size)} is a number of bytes, too few to be meant: name the unit, as in '{size}GB'.")
    return value


def parse_size(size: int | str) -> int:
    """Returns the bytes of `"3.5GiB"`, `"800 MB"` or a number.

    Raises:
        ValueError: it is none of these, not positive, or 2^63 bytes or more.
    """
    value: float = 0
    if isinstance(size, str) and len(size) <= _LONGEST_SIZE:  # on longer text a regular expression may take for ever
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kKMGT]i?)?B?\s*", size)
        value = float(match[1]) * UNITS[(match[2] or "").replace("k", "K")] if match else 0
    elif isinstance(size, (int, float)) and not isinstance(size, bool):
        value = size
    if not 1 <= value < 2**63:
        raise ValueError(
            f"a size is a number of bytes below 2^63 or a string such as '3.5GiB' or '800MB', got {quote(size)}."
        )
    return int(value)


def parse_ratio(size: int | str) -> float | None:
    """Returns how many times smaller than in bfloat16 a budget asks the file to be; None for a size in bytes.

    Raises:
        ValueError: what looks like a ratio and is none, is not positive, or is larger than can be.
    """
    if not isinstance(size, str) or "x" not in size.lower():
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*[xX]\s*", size) if len(size) <= _LONGEST_SIZE else None
    ratio = float(match[1]) if match else 0.0
    if not 0 < ratio <= MOST_RATIO:
        raise ValueError(
            f"a ratio says how many times smaller than in bfloat16 the file is to be: a number above 0 and at most "
            f"{MOST_RATIO}, then x, such as '4x' for a quarter; got {quote(size)}."
        )
    return ratio
