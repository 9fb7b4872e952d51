"""Says what a faster and a smaller setting would have been."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..config import QAIGConfig
from ..formats.scheme import Plan
from ..utils.readable import readable_size
from .cost_estimate import estimate_costs
from .coverage import Coverage

FASTER: Mapping[str, str] = {"best": "default", "default": "gptq", "gptq": "rtn", "fast": "rtn", "awq": "rtn"}
"""Recipe → the next one that takes less arithmetic at the widths of a 7B."""


def faster_setting(model: nn.Module, config: QAIGConfig, coverage: Coverage, tokens: int) -> str:
    """Returns the next faster recipe and its share of the arithmetic; empty for a recipe without one.

    Args:
        model: on the meta device.
        config: of the run.
        coverage: of its plan.
        tokens: of a sample.
    """
    name = FASTER.get(config.recipe.name)
    if name is None:
        return ""
    other = QAIGConfig(recipe=name, budget=config.budget, num_samples=config.num_samples)
    counts = [sum(estimate_costs(model, each, coverage, tokens).flop.values()) for each in (other, config)]
    if not counts[0]:
        return f"recipe={name!r}, which reads no data"
    share = counts[0] / counts[1]
    return f"recipe={name!r}, {share:.0%} of the arithmetic" if share < 1 else ""


def smaller_setting(plan: Plan, coverage: Coverage) -> str:
    """Returns one bit less for the blocks, and the size then; empty if they have two bits, or a budget chose."""
    widths = {scheme.bits for path, scheme in plan.items() if path not in coverage.outside_plan}
    if len(widths) != 1 or widths == {2} or coverage.outside_choices:
        return ""
    saved = coverage.whole.saved
    return f"bits={widths.pop() - 1}, {readable_size(saved - coverage.packed)} instead of {readable_size(saved)}"
