"""Sets and reads attributes of `QAIGConfig`: one form for each setting, and the names of 0.1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..utils.old_names import warn_of_old_name
from .budget import BitBudget
from .calibration import CalibrationConfig
from .deprecated import BUDGET, CALIBRATION
from .plain import plain
from .plan_source import read_plan
from .recipes import Recipe, recipe_of


def _recipe(value: Any) -> Recipe:
    return recipe_of(value if isinstance(value, Recipe) else plain(value, "recipe"))


_FORMS: dict[str, Callable[[Any], Any]] = {
    "recipe": _recipe,
    "budget": BitBudget.of,
    "calibration": CalibrationConfig.of,
    "plan": read_plan,
}
"""Setting → what brings each value that a user may give to the one form in which it is kept."""


class Attributes:
    """Keeps settings in one form, however they are set, and reads and sets those of 0.1 with a warning."""

    budget: BitBudget | None
    recipe: Recipe
    calibration: CalibrationConfig

    def __getattr__(self, name: str) -> Any:
        if name in CALIBRATION and "calibration" in vars(self):
            warn_of_old_name(f"QAIGConfig.{name}", f"calibration.{CALIBRATION[name]}")
            return getattr(self.calibration, CALIBRATION[name])
        if name in BUDGET and "budget" in vars(self):
            warn_of_old_name(f"QAIGConfig.{name}", f"budget.{BUDGET[name]}")
            return None if self.budget is None else getattr(self.budget, BUDGET[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CALIBRATION:
            warn_of_old_name(f"QAIGConfig.{name}", f"calibration.{CALIBRATION[name]}")
            name, value = "calibration", replace(self.calibration, **{CALIBRATION[name]: value})
        elif name in BUDGET or name == "stages":
            raise AttributeError(f"QAIGConfig has no `{name}`: set `{'recipe' if name == 'stages' else 'budget'}`.")
        super().__setattr__(name, _FORMS[name](value) if name in _FORMS else value)
