"""Translates the spelling of release 0.1: read for one more release by name, and always from files."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..utils.quote import quote
from .budget import RENAMED_COSTS, BitBudget
from .calibration import CalibrationConfig
from .recipes import renamed

CALIBRATION = {
    "dataset_columns": "columns",
    "processor": "processor",
    "token": "token",
    "trust_remote_code": "trust_remote_code",
    "work_dir": "work_dir",
    "calibration_device": "device",
    "min_coverage": "min_coverage",
}
"""Arguments that are fields of `CalibrationConfig` now."""
BUDGET = {"target_bits": "bits", "target_size": "size", "cost": "cost", "fuse_groups": "fuse"}
"""Arguments that are fields of `BitBudget` now."""
PLACEMENT = ("max_memory", "offload_folder")
"""Arguments that belong to `from_pretrained`."""
OLD_NAMES = (*CALIBRATION, *BUDGET, *PLACEMENT, "stages")
ONLY_OURS = tuple(name for name in OLD_NAMES if name not in ("token", "trust_remote_code", *PLACEMENT))
"""Old names that no other receiver of keyword arguments knows, such as `from_pretrained`."""


@dataclass
class Translation:
    """Arguments of 0.1 in today's spelling.

    Attributes:
        settings: today's arguments.
        placement: `max_memory` and `offload_folder`, as given.
        advice: for each old spelling, a sentence with the new one.
    """

    settings: dict[str, Any]
    placement: dict[str, Any] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)

    def warn(self, stacklevel: int) -> None:
        """Warns of the old spelling, if there was any."""
        if self.advice:
            text = "QAIGConfig: this spelling ends with the next release. " + " ".join(self.advice)
            warnings.warn(text, FutureWarning, stacklevel=stacklevel + 1)


def is_old(name: str, value: object) -> bool:
    """Whether an argument is spelled as in 0.1."""
    if name == "bits":
        value = value.tolist() if hasattr(value, "tolist") else value  # one number or several, of any library
        return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))
    if name == "recipe":
        return bool(renamed(value))
    if name == "budget":
        cost = value.get("cost") if isinstance(value, Mapping) else None
        return isinstance(cost, str) and cost in RENAMED_COSTS
    return name in OLD_NAMES


def translate(settings: Mapping[str, Any]) -> Translation:
    """Translates arguments of 0.1; the others stay as they are. Old names that are None count as not given.

    Raises:
        ValueError: an old spelling and a new one of the same thing.
    """
    old = {name: value for name, value in settings.items() if is_old(name, value)}
    done = Translation({name: value for name, value in settings.items() if name not in old})
    old = {name: value for name, value in old.items() if value is not None}
    _budget(old, done)
    _recipe(old, done)
    _calibration(old, done)
    done.placement = {name: old[name] for name in PLACEMENT if name in old}
    if done.placement:
        shown = ", ".join(f"{name}={quote(value)}" for name, value in done.placement.items())
        done.advice.append(f"Give them to from_pretrained({shown}).")
    return done


def _budget(old: Mapping[str, Any], done: Translation) -> None:
    given = {new: old[name] for name, new in BUDGET.items() if name in old}
    if "budget" in old:  # a cost by its old name
        cost = RENAMED_COSTS[old["budget"]["cost"]]
        done.settings["budget"] = {**old["budget"], "cost": cost}
        done.advice.append(f"Write cost={cost!r} for {old['budget']['cost']!r}.")
    if "bits" not in given and "size" not in given:
        if given and done.settings.get("budget") is not None:
            _add_to_budget(old, given, done)
        else:
            _without_budget(old, given, done)
        return
    _only_one(done.settings.get("budget"), "budget", [name for name in BUDGET if name in old])
    if done.settings.get("bits") is not None:
        raise ValueError(
            f"`bits={quote(done.settings['bits'])}` leaves nothing to choose under a budget: leave it out, or write "
            "budget=BitBudget(bits=..., candidates=(2, 3, 4, 8))."
        )
    if "bits" in old:
        given["candidates"] = old["bits"]
    budget = BitBudget(**given)
    done.settings["budget"] = budget
    done.advice.append(f"Write budget={_shown(budget, given)}.")


def _add_to_budget(old: Mapping[str, Any], given: Mapping[str, Any], done: Translation) -> None:
    """Adds an old cost or `fuse_groups` to a budget that is a number or a size."""
    budget = done.settings["budget"]
    if isinstance(budget, (Mapping, BitBudget)):
        names = " and ".join(f"`{name}`" for name in BUDGET if name in old)
        fields_ = ", ".join(f"{new}=..." for new in given)
        raise ValueError(f"{names} is for the budget: write budget=BitBudget(..., {fields_}) instead.")
    limit = BitBudget.of(budget)
    assert limit is not None
    done.settings["budget"] = whole = replace(limit, **given)
    shown = {"size" if isinstance(budget, str) else "bits": budget, **given}
    done.advice.append(f"Write budget={_shown(whole, shown)}.")


def _without_budget(old: Mapping[str, Any], given: Mapping[str, Any], done: Translation) -> None:
    """Translates a width and a cost without a budget.

    Several widths are an error. A cost has no effect, as in 0.1, but is checked.
    """
    if "bits" in old and done.settings.get("budget") is not None:
        raise ValueError(
            f"`bits={quote(old['bits'])}` belongs into the budget: write budget=BitBudget(bits=..., "
            "candidates=(2, 3, 4)) and leave out `bits`."
        )
    if "bits" in old:
        raise ValueError(
            f"`bits={quote(old['bits'])}` are several to choose from, which needs a budget: write "
            "budget=BitBudget(bits=..., candidates=...). Without one give one integer, and `overrides` for single "
            "weights."
        )
    if given:
        BitBudget(bits=1, **given)
        names = " and ".join(f"`{name}`" for name in BUDGET if name in old)
        done.advice.append(f"Leave out {names} without a budget; with one, write budget=BitBudget(cost=..., fuse=...).")


def _recipe(old: Mapping[str, Any], done: Translation) -> None:
    recipe = old.get("recipe", done.settings.get("recipe", "default"))
    stages = old.get("stages") or {}
    if not isinstance(stages, Mapping):
        raise ValueError(f"`stages` must map attributes of a recipe to values, got {quote(stages)}.")
    if "recipe" not in old and not stages:
        return
    if not isinstance(recipe, (str, Mapping)):
        raise ValueError("`recipe` is a Recipe and `stages` changes it: change the recipe, and leave out `stages`.")
    changes = {**({"name": recipe} if isinstance(recipe, str) else recipe), **stages}
    names = renamed(changes)
    done.settings["recipe"] = new = {names.get(key, key): value for key, value in changes.items()}
    if len(new) < len(changes):
        raise ValueError(f"`recipe` has an attribute by its old and its new name: give one of {quote(names)}.")
    done.advice.append(f"Write recipe={quote(new)}.")


def _calibration(old: Mapping[str, Any], done: Translation) -> None:
    given = {new: old[name] for name, new in CALIBRATION.items() if name in old}
    if not given:
        return
    _only_one(done.settings.get("calibration"), "calibration", [name for name in CALIBRATION if name in old])
    done.settings["calibration"] = CalibrationConfig(**given)
    shown = ", ".join(f"{name}=..." if name == "token" else f"{name}={quote(value)}" for name, value in given.items())
    done.advice.append(f"Write calibration=CalibrationConfig({shown}).")


def _only_one(new: object, name: str, old: list[str]) -> None:
    if new is not None:
        raise ValueError(f"`{name}` and {', '.join(f'`{one}`' for one in old)} say the same: give `{name}` alone.")


def _shown(budget: BitBudget, given: Mapping[str, Any]) -> str:
    """Returns the shortest way to write a budget."""
    if set(given) <= {"bits"}:
        return repr(budget.bits)
    if set(given) <= {"size"}:
        return repr(budget.size)
    values = {item.name: getattr(budget, item.name) for item in fields(budget) if item.name in given}
    return f"BitBudget({', '.join(f'{name}={value!r}' for name, value in values.items())})"
