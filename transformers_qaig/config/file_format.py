"""Reads and writes the settings in config.json, which anybody may have written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..formats.scheme import is_int
from ..nn.experts_layout import count_weights, split_path
from ..utils.quote import quote
from ..utils.version import __version__
from .deprecated import CALIBRATION, PLACEMENT, is_old, translate

QUANT_METHOD = "qaig"
FORMAT_VERSION = 2
"""The newest version of config.json and the packed tensors that this package reads."""
FORMATS = {1: "0.1.0", 2: "0.2.0"}
"""Version → the first release of transformers-qaig that reads it. 2 has `budget`, changed recipes and experts."""

RUN_ONLY = ("calibration", "dataset", *(name for name in CALIBRATION if name != "min_coverage"), *PLACEMENT)
"""Arguments for one run only, by today's and 0.1's names: never written, never taken from a file."""


def check_format(version: Any, needs: Any = None) -> None:
    """Raises `ValueError` unless this package reads the version; the message then says which release does.

    Args:
        version: `format_version` of the file.
        needs: its `needs_version`; None if it has none.
    """
    if not is_int(version) or version < 1:
        raise ValueError(f"`format_version` must be a positive integer, got {quote(version)}.")
    wanted = None if needs is None else _release(needs)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"This model was saved in a newer format (`format_version` {quote(version)}), and this installation reads "
            f"up to {FORMAT_VERSION}: upgrade transformers-qaig{f' to >= {wanted}' if wanted else ''}."
        )
    if wanted is not None and _numbers(wanted) > max(_numbers(FORMATS[FORMAT_VERSION]), _numbers(__version__)):
        raise ValueError(
            f"This model needs transformers-qaig >= {wanted} (`needs_version`), and {__version__} is installed: "
            "upgrade it."
        )


def _release(needs: Any) -> str:
    """Returns `needs_version`, which anybody may have written, if it is a version."""
    if not isinstance(needs, str) or re.match(r"[0-9]{1,6}(\.[0-9]{1,6}){1,2}(?![0-9])", needs[:40]) is None:
        raise ValueError(f"`needs_version` must be a version such as '0.1.0', got {quote(needs)}.")
    return needs[:40]


def _numbers(version: str) -> list[int]:
    """Returns `[0, 2, 0]` for `0.2.0.dev0`."""
    return [int(number) for number in re.findall(r"[0-9]{1,6}", version)[:3]]


def format_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the oldest format version that can hold these settings, so that older releases can read the file."""
    has_experts = any(split_path(path) for path in settings.get("plan") or ())
    version = 2 if "budget" in settings or isinstance(settings["recipe"], Mapping) or has_experts else 1
    return {"format_version": version, "needs_version": FORMATS[version]}


def true_to_plan(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings with `bits`, `group_size` and `sym` that hold for some weight of the plan.

    Beside a plan they are not read, but people and tools read them in config.json. One that no weight has is replaced
    by what most weights have. They stay without a plan, and where a part of the model is yet to be stored by them.
    """
    plan, parts = settings.get("plan"), ("vision_bits", "lm_head_bits", "embedding_bits")
    if not plan or any(part in settings for part in parts):
        return settings
    counts = count_weights(plan)
    changed: dict[str, Any] = {}
    for name in ("bits", "group_size", "sym"):
        values: Counter[Any] = Counter()
        for path, entry in plan.items():
            values[entry.get(name)] += counts[path]
        if name in settings and settings[name] not in values:
            changed[name] = values.most_common(1)[0][0]
    return {**settings, **changed}


def read_settings(
    config_dict: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Reads the arguments in a mapping: a checkpoint's config.json, or one of the user's own.

    Args:
        config_dict: the mapping.
        changes: arguments that are given beside it, and count instead of its own.

    Returns:
        today's arguments, and the names of those for one run that a checkpoint holds and that are left out.

    Raises:
        ValueError: a newer format, or a `plan` that is no mapping.
        TypeError: an argument for one run only where there is no `plan`.
    """
    settings = {name: value for name, value in config_dict.items() if name not in RUN_ONLY}
    check_format(settings.pop("format_version", 1), settings.pop("needs_version", None))
    plan = settings.get("plan")
    if plan is not None and not isinstance(plan, Mapping):
        raise ValueError(
            f"`plan` in a config.json or another mapping must be a mapping itself, got {quote(plan)}: to read a "
            "plan from a file of yours, use QAIGConfig(plan=...)."
        )
    given = [name for name in RUN_ONLY if config_dict.get(name) is not None and config_dict[name] is not False]
    if given and plan is None:
        raise TypeError(f"`{given[0]}` is for one run and not taken from a mapping: write {_how_to_give(given[0])}.")
    changes = changes or {}
    done = translate({**settings, **changes})
    written_by_us = "format_version" in config_dict
    if not written_by_us or any(is_old(name, value) for name, value in changes.items()):
        done.warn(stacklevel=3)
    return {**done.settings, **({"format_version": FORMAT_VERSION} if written_by_us else {})}, given


def _how_to_give(name: str) -> str:
    if name in PLACEMENT:
        return f"from_pretrained({name}=...)"
    if name in CALIBRATION:
        return f"QAIGConfig(calibration=CalibrationConfig({CALIBRATION[name]}=...))"
    return f"QAIGConfig({name}=...)"
