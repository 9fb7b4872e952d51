"""Reads a given plan: from a mapping, another configuration, or a JSON file of the user's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..utils.errors import reason
from ..utils.json_file import read_json

LARGEST_PLAN = 256 << 20
"""The most bytes of a plan's file: room for two million weights."""


@runtime_checkable
class HasPlan(Protocol):
    """A configuration with a plan, such as `QAIGConfig`."""

    plan: dict[str, Any] | None


def read_plan(source: Mapping[str, Any] | HasPlan | str | os.PathLike[str] | None) -> Any:
    """Reads the plan in a mapping, a config, a JSON file or a model's folder, or in a whole config.json.

    Returns:
        the plan itself, unchecked and not copied; None if `source` is.

    Raises:
        ValueError: a file that cannot be read, or a model's config without a plan.
    """
    if source is None:
        return None
    if isinstance(source, (str, os.PathLike)):
        source = _read_json(Path(source).expanduser())
    plan: Any = source.plan if isinstance(source, HasPlan) else source
    if isinstance(plan, Mapping) and ("quantization_config" in plan or "quant_method" in plan):
        settings = plan.get("quantization_config", plan)
        plan = settings.get("plan") if isinstance(settings, Mapping) else None
    if plan is None:
        raise ValueError("`plan` is a model's config that holds no plan: that model was not quantized by this package.")
    return plan


def copy_plan(plan: dict[str, Any] | None) -> dict[str, Any] | None:
    """Copies a checked plan, much faster than `copy.deepcopy`: entries and rotations are flat dicts."""
    return None if plan is None else {path: _copied(entry) for path, entry in plan.items()}


def _read_json(file: Path) -> Any:
    """Reads a JSON file of the user's, or the config.json of a folder."""
    file = file / "config.json" if file.is_dir() else file
    try:
        return read_json(file, LARGEST_PLAN)
    except (OSError, ValueError) as error:
        raise ValueError(f"`plan`: {file} cannot be read ({reason(error)}); give a JSON file or a folder.") from error


def _copied(entry: Mapping[str, Any]) -> dict[str, Any]:
    copied = dict(entry)
    if copied.get("rotation") is not None:
        copied["rotation"] = dict(copied["rotation"])
    return copied
