"""What to write for a setting that is given in the wrong place, or that another library has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from ..utils.suggestion import did_you_mean
from .other_methods import ADVICE


def remedy(name: str, known: Iterable[str]) -> str:
    """Returns a sentence that says what to write for a setting of an unknown name.

    It is from another library, or it belongs elsewhere in a configuration. Otherwise the sentence has the nearest of
    `known`, or all of them.
    """
    if name in ADVICE:
        return ADVICE[name]
    for home, names in _homes():
        if name in names:
            return f"Write {home.format(name)}."
    known = list(known)
    return did_you_mean(name, known).strip() or f"Known are {', '.join(known)}."


def _homes() -> list[tuple[str, Iterable[str]]]:
    """Returns how to write the settings of each part of a configuration, and their names."""
    from .budget import BitBudget  # here: these files use this one
    from .calibration import CalibrationConfig
    from .qaig_config import argument_names
    from .recipes import Recipe

    return [
        ("QAIGConfig({}=...)", argument_names()),
        ("recipe={{'name': 'default', '{}': ...}}", [field.name for field in fields(Recipe) if field.name != "name"]),
        ("calibration=CalibrationConfig({}=...)", [field.name for field in fields(CalibrationConfig)]),
        ("budget=BitBudget({}=...)", [field.name for field in fields(BitBudget)]),
    ]
