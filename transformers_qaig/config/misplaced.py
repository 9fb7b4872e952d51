"""Suggests what to write for an unknown setting: its right place, this package's own setting, or the nearest name."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..utils.suggestion import did_you_mean
from .other_methods import ADVICE

_WRITTEN = {
    "QAIGConfig": "QAIGConfig({}=...)",
    "Recipe": "recipe={{'name': 'default', '{}': ...}}",
    "CalibrationConfig": "calibration=CalibrationConfig({}=...)",
    "BitBudget": "budget=BitBudget({}=...)",
}
"""Class → how one of its settings is written. The first class that has a name counts."""
_SETTINGS: dict[str, Collection[str]] = dict.fromkeys(_WRITTEN, ())
"""Class → names of its settings."""


def register_settings(of_class: str, names: Iterable[str]) -> None:
    """Keeps the names of a class's settings. The files of these classes call it, and this one imports none of them."""
    _SETTINGS[of_class] = tuple(names)


def remedy(name: str, known: Iterable[str]) -> str:
    """Returns a sentence that says what to write for a setting of an unknown name.

    It is from another library, or it belongs elsewhere in a configuration. Otherwise the sentence has the nearest of
    `known`, or all of them.
    """
    if name in ADVICE:
        return ADVICE[name]
    for of_class, written in _WRITTEN.items():
        if name in _SETTINGS[of_class]:
            return f"Write {written.format(name)}."
    known = list(known)
    return did_you_mean(name, known).strip() or f"Known are {', '.join(known)}."
