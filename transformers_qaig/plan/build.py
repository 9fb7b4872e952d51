"""Makes the plan: which weights are packed and how, decided on the meta model before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..config import QAIGConfig
from ..config.size import parse_size
from ..formats.scheme import MIN_GROUP_SIZE, Plan
from ..nn.embedding import why_not_packed
from ..nn.experts_layout import ExpertsLayout, find_experts
from ..structure import Found, ModelStructure, find_vision_tower
from ..utils.errors import SettingError
from ..utils.logging import get_logger
from .allocate import SchemeOption
from .coverage import BLOCKS, Coverage, PartSize
from .experts import check_stacks, owner, stack_sizes, stored_as
from .schemes import SKIPPED, SchemeResolver
from .weights import weights_in, why_not

logger = get_logger(__name__)

EMBEDDINGS, EXPERTS = "embeddings and heads", "experts"
"""What is not rotated."""
SHAPE_BITS = 2 * 64
"""Every packed weight is stored with its shape, two int64."""


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
    plan = {path: choices[0].scheme for path, choices in options.items()}
    return {**plan, **coverage.outside_plan}, coverage


def list_schemes(model: nn.Module, config: QAIGConfig) -> tuple[dict[str, list[SchemeOption]], Coverage]:
    """Lists the ways in which every linear of the language model's blocks may be stored, with their sizes.

    Each has one way, unless `bits` are to be chosen from. What is packed outside the blocks has one way, which is in
    the coverage. Costs are not known yet. Works on the meta device.

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
    outside = {**_vision(model, resolver, stacks), **_embeddings_and_head(structure, resolver)}
    example = next(iter(options), next(iter(coverage.skipped), "nothing"))
    resolver.check(example)
    if not options:
        largest = max(coverage.skipped.items(), key=lambda item: item[1][0], default=("", (0, "")))
        why = f": {largest[0]} is {largest[1][1]}" if largest[0] else ""
        raise SettingError(f"No weight of the language model's blocks can be packed{why}.")
    coverage.outside_plan = {path: option.scheme for path, option in outside.items()}
    check_stacks(stacks, {path: choices[0].scheme for path, choices in options.items()}, coverage.outside_plan)
    sizes = {**dict.fromkeys(options, SHAPE_BITS), **{path: o.size + SHAPE_BITS for path, o in outside.items()}}
    sizes |= stack_sizes(stacks, outside, {*options, *outside})
    _measure(model, structure, coverage, sizes)
    return options, coverage


def _in_both_directions(ties: Mapping[str, str]) -> dict[str, str]:
    """Returns every parameter that is one tensor with another, by name → the other's name."""
    return {one: other for pair in ties.items() for one, other in (pair, pair[::-1])}


def _tied_to(path: str, tied: Mapping[str, str], stacks: Mapping[str, ExpertsLayout]) -> str:
    """Returns the parameter that a weight is one tensor with; empty if there is none."""
    return next((tied[name] for name in (f"{path}.weight", *stored_as([path], stacks)) if name in tied), "")


def _vision(model: nn.Module, resolver: SchemeResolver, stacks: Mapping[str, ExpertsLayout]) -> dict[str, SchemeOption]:
    """Lists the tower's and the projector's linears that are to be packed."""
    bits = resolver.config.vision_bits
    if bits is None and not resolver.given:
        return {}
    candidates = None if bits is None else [resolver.config.scheme(bits)]
    try:
        modules = find_vision_tower(model)
    except ValueError as error:
        if bits is not None:
            raise SettingError(f"`vision_bits={bits}`: {error}") from error
        return {}
    packed = {}
    for path, parameter, reason in weights_in(modules, stacks):
        unrotated = EXPERTS if owner(path, stacks) != path else ""
        options, reason = resolver.options(path, parameter, reason, candidates, unrotated)
        if options:
            packed[path] = options[0]
        elif bits is not None:
            logger.info("%s stays as it is: %s", path, reason)
    if bits is not None and not packed:
        raise SettingError(f"`vision_bits={bits}`: no weight of the vision tower or the projector can be packed.")
    return packed


def _embeddings_and_head(structure: ModelStructure, resolver: SchemeResolver) -> dict[str, SchemeOption]:
    """Lists embeddings and head, if they are to be packed."""
    config, embeddings, head, tied = resolver.config, structure.embeddings, structure.head, structure.is_tied
    asked = {"embedding_bits": config.embedding_bits, "lm_head_bits": config.lm_head_bits}
    if tied and None not in asked.values() and len(set(asked.values())) > 1:
        raise SettingError(
            f"{structure.model_name} ties its head to its embeddings: one tensor cannot have "
            f"`embedding_bits={config.embedding_bits}` and `lm_head_bits={config.lm_head_bits}`; give one of them."
        )
    wanted = dict(asked)
    if tied:
        asked = dict.fromkeys(asked, config.embedding_bits or config.lm_head_bits)
    packed = {}
    for (name, bits), found in zip(asked.items(), (embeddings, head)):
        if bits is None and found.path not in resolver.given:
            continue
        if reason := _why_stays_dense(structure, found):
            given = [f"`{key}`" for key, value in wanted.items() if value is not None] if tied else [f"`{name}`"]
            raise SettingError(f"{' and '.join(given) or f'`plan[{found.path!r}]`'}: {reason}.")
        assert found.module is not None
        candidates = None if bits is None else [config.scheme(bits)]
        options, _ = resolver.options(found.path, found.module.get_parameter("weight"), "", candidates, EMBEDDINGS)
        if options:
            packed[found.path] = options[0]
    schemes = [packed[found.path].scheme if found.path in packed else None for found in (embeddings, head)]
    if tied and schemes[0] != schemes[1]:
        entries = [None if scheme is None else scheme.to_dict() for scheme in schemes]
        raise SettingError(
            f"{structure.model_name} ties its head to its embeddings: {embeddings.path!r} and {head.path!r} are one "
            f"tensor and need one entry, got {entries[0]} and {entries[1]}."
        )
    if tied:  # stored once
        packed = {
            path: SchemeOption(o.scheme, o.size * (path == embeddings.path), o.cost) for path, o in packed.items()
        }
    return packed


def _why_stays_dense(structure: ModelStructure, found: Found) -> str:
    """Returns why embeddings or a head cannot be packed; empty if they can."""
    if found.module is None:
        return f"{structure.model_name} has none"
    if isinstance(found.module, nn.Embedding):
        reason = why_not_packed(found.module)
        if min(found.module.weight.shape) < MIN_GROUP_SIZE:
            reason = f"{found.path} is of {tuple(found.module.weight.shape)}: too small to be worth packing"
    else:
        reason = why_not(found.module, "weight", found.path, {})
    if structure.is_tied and getattr(found.module, "bias", None) is not None:
        reason = f"{found.path} has a bias and is tied"
    pairs = [pair for pair in structure.ties.items() if f"{found.path}.weight" in pair]
    others = {name.removesuffix(".weight") for pair in pairs for name in pair}
    others -= {structure.embeddings.path, structure.head.path}
    if others:
        reason = (
            f"{found.path} is one tensor with {', '.join(sorted(others))}, and only embeddings and head can be packed "
            "as one. Leave the setting out"
        )
    return reason


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
        size.saved += sizes.get(path, bits)
        if part != BLOCKS and path not in sizes and name in weights:
            coverage.unpacked[part] = coverage.unpacked.get(part, 0) + tensor.numel()


def budget_in_bits(config: QAIGConfig, coverage: Coverage, reachable: tuple[int, int]) -> float:
    """Computes the stored bits that the packed weights may take.

    Args:
        config: has a budget.
        coverage: from [`list_schemes`].
        reachable: what the packed weights take at least and at most.

    Raises:
        ValueError: not even the smallest choice fits; the message gives the reachable range.
    """
    budget = config.budget
    assert budget is not None
    if budget.bits is None:
        assert budget.size is not None
        limit, asked = 8.0 * parse_size(budget.size) - coverage.other_bits, repr(budget.size)
        low, high = ((coverage.other_bits + bits) / 8 for bits in reachable)
        span = f"{low:,.0f} to {high:,.0f} bytes, of which {coverage.other_bits / 8:,.0f} are not packed"
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


def _part(name: str) -> str:
    """Returns the part that a name is in: `model.vision_tower.encoder.…` → `model.vision_tower`."""
    path = name.split(".")[:-1]
    return ".".join(path[:2]) if path and path[0] == "model" else path[0] if path else name
