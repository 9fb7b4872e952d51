"""Makes the plan: which weights are packed and how, decided on the meta model before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from ..config import QAIGConfig
from ..formats.scheme import Plan
from ..nn.experts_layout import ExpertsLayout, find_experts
from ..structure import ModelStructure
from ..utils.errors import SettingError
from ..utils.logging import get_logger
from .allocate import Allocation, Options, SchemeOption, option_at
from .coverage import BLOCKS, Coverage, OutsideWeight, PartSize
from .experts import check_stacks, owner, parameter_names, stack_sizes
from .outside import EXPERTS, SHAPE_BITS, list_outside
from .schemes import SKIPPED, SchemeResolver
from .weights import weights_in

logger = get_logger(__name__)


def make_plan(model: nn.Module, config: QAIGConfig) -> tuple[Plan, Coverage]:
    """Decides bits and group size for everything that is packed. Works on the meta device.

    Raises:
        ValueError: what [`list_schemes`] raises, or some weight has several widths to choose from.
    """
    options, coverage = list_schemes(model, config)
    undecided = [path for path, choices in options.items() if len(choices) > 1]
    if undecided:
        raise SettingError(
            f"{undecided[0]!r} and {len(undecided) - 1} more have several `bits` to choose from: allocate first."
        )
    coverage.stored_bits = sum(choices[0].size for choices in options.values())
    return {**_first(options), **coverage.outside_plan}, coverage


def list_schemes(model: nn.Module, config: QAIGConfig) -> tuple[dict[str, list[SchemeOption]], Coverage]:
    """Lists the ways in which every weight may be stored, with their sizes.

    A linear of the language model's blocks has one way, unless a budget chooses. A weight outside the blocks has
    several only where a budget for the whole file chooses. One that has one way is in the coverage instead. Costs are
    not known yet. Works on the meta device.

    Args:
        model: may be on the meta device.
        config: bits, group size, overrides and parts to pack.

    Returns:
        weight path → ways to store it, and the coverage.

    Raises:
        ValueError: one of these: a name or pattern in `modules_to_not_convert` or `overrides` matches nothing; a given
            plan has a path that cannot be packed; a part that was asked for is missing or cannot be packed; tied
            embeddings and head have different bits; or there is nothing to pack.
    """
    stacks = find_experts(model)
    resolver, coverage = SchemeResolver(config, model, stacks), Coverage()
    structure = ModelStructure.of(model)
    options: dict[str, list[SchemeOption]] = {}
    candidates = None if config.plan is not None else config.candidates
    tied = _in_both_directions(structure.ties)
    for path, parameter, reason in weights_in(structure.blocks, stacks):
        coverage.total += parameter.numel()
        if other := _tied_to(path, tied, stacks):
            reason = f"one tensor with {other}, which stays as it is"
        unrotated = EXPERTS if owner(path, stacks) != path else ""
        found, reason = resolver.options(path, parameter, reason, candidates, unrotated)
        if reason:
            coverage.skipped[path] = (parameter.numel(), reason)
            coverage.excluded += parameter.numel() if reason == SKIPPED else 0
            continue
        options[path] = found
        coverage.packed += parameter.numel()
    outside = list_outside(model, structure, resolver, stacks)
    example = next(iter(options), next(iter(coverage.skipped), "nothing"))
    resolver.check(example)
    if not options:
        largest = max(coverage.skipped.items(), key=lambda item: item[1][0], default=("", (0, "")))
        why = f": {largest[0]} is {largest[1][1]}" if largest[0] else ""
        raise SettingError(f"No weight of the language model's blocks can be packed{why}.")
    fixed = {path: choices[0] for path, choices in outside.items() if len(choices) == 1}
    coverage.outside_plan = Allocation(fixed).schemes
    check_stacks(stacks, *(_first(ways) for ways in (options, outside)))
    undecided = {path: choices for path, choices in outside.items() if path not in fixed}
    sizes = {**dict.fromkeys(options, SHAPE_BITS), **dict.fromkeys(undecided, 0)}
    sizes |= {path: option.size for path, option in fixed.items()}
    sizes |= stack_sizes(stacks, fixed, {*options, *outside})
    _measure(model, structure, coverage, sizes)
    for path, choices in undecided.items():
        ends = (structure.embeddings.path, structure.head.path)
        also = structure.head.path if structure.is_tied and path == structure.embeddings.path else ""
        part = path if path in ends else _part(f"{path}.weight")
        coverage.outside_choices[path] = OutsideWeight(part, choices[0].elements, also)
    return {**options, **undecided}, coverage


def _first(options: Options) -> Plan:
    """Returns the plan of every weight's first way."""
    return Allocation({path: choices[0] for path, choices in options.items()}).schemes


def _in_both_directions(ties: Mapping[str, str]) -> dict[str, str]:
    """Returns every parameter that is one tensor with another, by name → the other's name."""
    return {one: other for pair in ties.items() for one, other in (pair, pair[::-1])}


def _tied_to(path: str, tied: Mapping[str, str], stacks: Mapping[str, ExpertsLayout]) -> str:
    """Returns the parameter that a weight is one tensor with; empty if there is none."""
    return next((tied[name] for name in (f"{path}.weight", *parameter_names([path], stacks)) if name in tied), "")


def _measure(model: nn.Module, structure: ModelStructure, coverage: Coverage, sizes: Mapping[str, int]) -> None:
    """Fills in the size of each part; `sizes` are the saved bits of each packed weight, without the blocks' codes."""
    inside = tuple(f"{path}." for path in structure.blocks)
    ends = (structure.embeddings.path, structure.head.path)
    weights = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.ndim >= 2}
    for name, tensor in model.state_dict().items():
        if name in structure.ties:  # on meta they are not one tensor yet
            continue
        path = name.removesuffix(".weight")
        part = BLOCKS if name.startswith(inside) else path if path in ends else _part(name)
        bits = 8 * tensor.element_size() * tensor.numel()
        size = coverage.parts.setdefault(part, PartSize())
        size.full += bits
        coverage.bfloat16 += 16 * tensor.numel() if tensor.is_floating_point() else bits
        size.saved += sizes.get(path, bits)
        if part != BLOCKS and path not in sizes and name in weights:
            coverage.unpacked[part] = coverage.unpacked.get(part, 0) + tensor.numel()


def budget_in_bits(config: QAIGConfig, options: Options, coverage: Coverage, reachable: tuple[int, int]) -> float:
    """Computes the stored bits that the packed weights may take.

    Args:
        config: has a budget.
        options: from [`list_schemes`].
        coverage: from there, too.
        reachable: what the packed weights take at least and at most.

    Raises:
        ValueError: not even the smallest choice fits; the message gives the reachable range.
    """
    budget = config.budget
    assert budget is not None
    if budget.uniform is not None:
        return sum(option_at(choices, budget.uniform).size for choices in options.values())
    if budget.bits is None:
        limit, asked = 8.0 * budget.file_bytes(coverage.bfloat16 // 8) - coverage.other_bits, repr(budget.size)
        low, high = ((coverage.other_bits + bits) / 8 for bits in reachable)
        span = (
            f"{low:,.0f} to {high:,.0f} bytes, {ratio_to(coverage, low)} to {ratio_to(coverage, high)}, "
            f"of which {coverage.other_bits / 8:,.0f} bytes are fixed"
        )
    else:
        limit, asked = budget.bits * coverage.packed, repr(budget.bits)
        low, high = (bits / coverage.packed for bits in reachable)
        span = f"{low:.3f} to {high:.3f} stored bits per packed weight, scales and zero points included"
    if limit > reachable[1]:
        logger.warning(
            "`budget=%s` is more than there is to choose from: with `candidates=%s` the model takes %s. Every weight "
            "gets its widest, and no cost is measured. Lower the budget, or allow wider `candidates`.",
            asked, budget.candidates, span,
        )  # fmt: skip
    if limit < reachable[0]:
        raise SettingError(
            f"`budget={asked}` cannot be met: with `candidates={budget.candidates}` and "
            f"`group_size={config.group_size}` the model takes {span}. Raise the budget, or allow narrower "
            "`candidates` or a larger `group_size`."
        )
    return limit


def ratio_to(coverage: Coverage, size: float) -> str:
    """Returns how many times smaller than in bfloat16 a file of `size` bytes is, as a budget says it: `"3.91x"`."""
    return f"{math.floor(100 * coverage.bfloat16 / 8 / size) / 100:.2f}x"


def _part(name: str) -> str:
    """Returns the part that a name is in: `model.vision_tower.encoder.…` → `model.vision_tower`."""
    path = name.split(".")[:-1]
    return ".".join(path[:2]) if path and path[0] == "model" else path[0] if path else name
