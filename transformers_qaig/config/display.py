"""Formats a configuration for people: without defaults, with the plan in one line.

A `QAIGConfig` is shown as the Python that makes it. A model's config shows it in its own JSON.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..nn.experts_layout import count_open_stacks, count_weights
from .budget import BitBudget
from .calibration import CalibrationConfig

_REPR = PreTrainedConfig.__repr__.__code__
_DEEPEST = 8  # frames between a model's config that is printed and ours


_WIDTH = 100
_USUAL = {field.name: field.default for field in fields(CalibrationConfig)}


def as_python(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], dataset: Any, calibration: CalibrationConfig
) -> str:
    """Returns the call of `QAIGConfig` that makes these settings; the plan is summed up in a comment.

    Args:
        settings: as config.json holds them.
        defaults: of a configuration without arguments.
        dataset: which config.json does not hold; an object is shown by its type and length.
        calibration: the same.
    """
    always, hidden = ("bits", "group_size"), ("quant_method", "format_version", "needs_version", "plan", "min_coverage")
    shown = [
        f"{name}={_shortest(value) if name == 'budget' else value!r}"
        for name, value in settings.items()
        if name in always or (name not in hidden and value != defaults.get(name))
    ]
    if dataset is not None:
        shown.append(f"dataset={_in_short(dataset)}")
    if calibration != CalibrationConfig():
        shown.append(f"calibration={_calibration(calibration)}")
    plan = settings.get("plan")
    line = f"QAIGConfig({', '.join(shown)})"
    if len(line) <= _WIDTH and plan is None:
        return line
    lines = [f"{argument}," for argument in shown] + ([f"# plan: {_plan(plan)}"] if plan is not None else [])
    return "\n    ".join(["QAIGConfig(", *lines]) + "\n)"


def summary(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how wide weights are, and the settings that differ from the defaults.

    Args:
        settings: as config.json holds them.
        defaults: of a configuration without arguments.
    """
    always = ("quant_method", "bits", "group_size")
    hidden = ("format_version", "needs_version")
    in_short = {"plan": _plan, "budget": lambda value: _flat(_without_defaults(value)), "recipe": _flat}
    return {
        name: in_short.get(name, lambda value: value)(value)
        for name, value in settings.items()
        if name in always or (name not in hidden and value != defaults.get(name))
    }


def _shortest(budget: Mapping[str, Any]) -> Any:
    """Returns a budget as short as a user may write it: a number of bits or a size, where that says all."""
    changed = _without_defaults(budget)
    if changed.keys() in ({"bits"}, {"size"}):
        (shortest,) = changed.values()
        with suppress(ValueError):  # such as of a size in bytes, which reads as bits
            if BitBudget.of(shortest) == BitBudget.of(budget):
                return shortest
    return changed


def _without_defaults(budget: Mapping[str, Any]) -> dict[str, Any]:
    defaults = BitBudget(bits=1).to_dict()
    return {name: item for name, item in budget.items() if name == "bits" or item != defaults.get(name)}


def _calibration(calibration: CalibrationConfig) -> str:
    """Returns the call of `CalibrationConfig` that makes it; the token is left out."""
    values = {field.name: getattr(calibration, field.name) for field in fields(calibration) if field.repr}
    changed = (f"{name}={_in_short(value)}" for name, value in values.items() if value != _USUAL[name])
    return f"CalibrationConfig({', '.join(changed)})"


def _in_short(value: Any) -> str:
    """Returns the Python of a plain value; of any other object its type, and how many items it has."""
    if isinstance(value, (str, int, float, os.PathLike, torch.device)) or (
        isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())
    ):
        return repr(value)
    items = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"<{type(value).__name__}{items}>"


def _flat(value: Any) -> Any:
    """Formats a nested setting as `name='default', rotation='all'`."""
    return ", ".join(f"{name}={item!r}" for name, item in value.items()) if isinstance(value, Mapping) else value


def _plan(plan: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns `42 layers, 3 bits`; for a mixed plan `42 layers, 3.30 bits on average (30 of 3, 12 of 4)`."""
    widths: Counter[int] = Counter()
    counted = count_weights(plan)
    for path, count in counted.items():
        widths[plan[path]["bits"]] += count
    total, has_stacks = widths.total(), count_open_stacks(counted) > 0
    layers = f"{total} layer{'s' if total != 1 else ''}{' and stacks of experts' if has_stacks else ''}"
    if len(widths) == 1:
        return f"{layers}, {next(iter(widths))} bits"
    counts = ", ".join(f"{count} of {bits}" for bits, count in sorted(widths.items()))
    if has_stacks:  # only the model knows of how many experts
        return f"{layers} ({counts})"
    mean = sum(bits * count for bits, count in widths.items()) / total
    return f"{layers}, {mean:.2f} bits on average ({counts})"


def is_being_printed() -> bool:
    """Whether a model's config is being printed.

    `PreTrainedConfig.__repr__` and `save_pretrained` both end in `to_dict` of the quantization config. Only the stack
    tells them apart, and a file must hold the whole plan.
    """
    frame = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame.f_back is None:
            return False
        frame = frame.f_back
        if frame.f_code is _REPR:
            return True
    return False
