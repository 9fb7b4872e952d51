"""What a damaged checkpoint led to, and what of that may not be."""

from dataclasses import dataclass

from tests.robustness.children import Ended
from tests.robustness.config_damage import Damage

FAULTS = ("silent", "hang", "crash", "memory", "unnamed")


@dataclass
class Outcome:
    """
    Attributes:
        kind: `"same"` logits; `"ours"`, an error of this package that names what is wrong, or `"unnamed"`; `"others'"`
            error; `"undetectable"`, another valid number; `"silent"`; `"hang"`; `"crash"`; `"memory"`.
        text: what was done and what came of it.
    """

    kind: str
    text: str


def sort(damage: Damage, ended: Ended, names: list[str]) -> Outcome:
    """The outcome of a damage, for a checkpoint that holds tensors called `names`."""
    return Outcome(_kind(damage, ended, names), f"{damage.text}\n    {ended.how}: {str(ended.value)[:600]}")


def _kind(damage: Damage, ended: Ended, names: list[str]) -> str:
    if ended.how == "hang":
        return "hang"
    if ended.how == "signal":
        return "crash"
    if ended.how == "error":
        text = str(ended.value)
        if text.startswith("MemoryError"):
            return "memory"
        if not ended.ours:
            return "others'"
        return "ours" if any(name in text for name in names) else "unnamed"
    if damage.exact:
        return "silent"
    if ended.value == "same":
        return "same"
    return "undetectable" if damage.other_value and ended.value == "finite" else "silent"
