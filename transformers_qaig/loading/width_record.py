"""Records the widths of experts in the weights' files: a flat tensor does not say which words are whose."""

from __future__ import annotations

import json
from collections.abc import Sequence

from safetensors import safe_open

from ..formats.scheme import Plan
from ..nn.experts_layout import split_path
from ..utils.quote import quote

KEY = "qaig_expert_bits"
"""Key in the metadata of every file: JSON, the bits of each projection's experts as digits, in the order of paths."""


def record_widths(plan: Plan) -> dict[str, str]:
    """Returns what is written into the metadata of the files that hold the weights of `plan`; nothing without experts.

    Args:
        plan: names each expert.
    """
    widths = list(_widths(plan).values())
    return {KEY: json.dumps(widths)} if widths else {}


def check_widths(plan: Plan, files: Sequence[str]) -> None:
    """Compares the experts' widths in a plan with those that the weights were saved with.

    Args:
        plan: from config.json, in the model's names; names each expert. Those keep the order of paths.
        files: the checkpoint's shards.

    Raises:
        ValueError: naming the experts that config.json gives other widths.
    """
    widths = _widths(plan)
    for file in files:
        with safe_open(file, "pt") as stored:
            text = (stored.metadata() or {}).get(KEY)
        try:
            recorded = list(widths.values()) if text is None else json.loads(text)
        except (ValueError, RecursionError):
            recorded = None
        if not isinstance(recorded, list):
            raise ValueError(
                f"`{KEY}` in the header of {file} cannot be read, it says {quote(text)}: the file is damaged."
            )
        if len(recorded) != len(widths):
            raise ValueError(
                f"config.json names the experts of {len(widths)} projections, and {file} was saved with those of "
                f"{len(recorded)}: config.json is damaged, or belongs to other weights."
            )
        for path, (found, saved) in zip(widths, zip(widths.values(), recorded)):
            if found != saved:
                raise ValueError(
                    f"config.json gives the experts in {path} the bits {quote(found)}, and {file} was saved with "
                    f"{quote(saved)}: config.json is damaged, or belongs to other weights."
                )


def _widths(plan: Plan) -> dict[str, str]:
    """Returns `stack.projection` → the bits of its experts."""
    bits: dict[str, dict[int, int]] = {}
    for path, scheme in plan.items():
        parts = split_path(path)
        if parts is not None and parts[1].isdecimal():
            bits.setdefault(f"{parts[0]}.{parts[2]}", {})[int(parts[1])] = scheme.bits
    return {path: "".join(str(b) for _, b in sorted(found.items())) for path, found in sorted(bits.items())}
