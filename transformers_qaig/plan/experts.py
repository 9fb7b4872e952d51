"""The weights of experts in a plan: their paths, which of them go together, and what routes to them."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..formats.scheme import MIN_GROUP_SIZE, Plan, WeightScheme, plan_to_dict
from ..nn.experts_layout import ExpertsLayout, expert_path, split_path
from ..nn.projection_scheme import ProjectionScheme
from ..utils.errors import SettingError
from ..utils.quote import quote
from .allocate import SchemeOption

EVERY = "*"
"""Stands for the index of every expert: `….experts.*.down_proj`."""
ROUTER = re.compile(r"(?:^|[._])(?:router|gate|gating)(?:[._]|$)")
_Entry = TypeVar("_Entry")


def expert_weights(stack: str, layout: ExpertsLayout, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, str]]:
    """Yields path, an empty tensor `[N, K]` on the meta device, and why it cannot be packed, of each expert's weights.

    Args:
        stack: path of the stack.
        layout: of the stack.
        dtype: of its weights.
    """
    size = min(layout.hidden_size, layout.intermediate_size)
    reason = f"experts of {layout.hidden_size} → {layout.intermediate_size}: too small to be worth packing"
    weights = {name: torch.empty(layout.shape(name), dtype=dtype, device="meta") for name in layout.projections}
    for expert in range(layout.num_experts):
        for name, weight in weights.items():
            yield expert_path(stack, expert, name), weight, reason if size < MIN_GROUP_SIZE else ""


def is_router(path: str, linear: nn.Linear, stacks: Mapping[str, ExpertsLayout]) -> bool:
    """Whether a linear routes tokens to the experts of a stack: packing it would change which ones are chosen.

    It has an output for each choice of a stack below its parent or its parent's parent, and is called a gate or router.

    Args:
        path: of the linear in the model.
        linear: the linear.
        stacks: those of the model, by path.
    """
    parent = path.rpartition(".")[0]
    above = (parent, parent.rpartition(".")[0])
    near = (layout for stack, layout in stacks.items() if any(stack.startswith(f"{part}.") for part in above if part))
    return any(linear.out_features == layout.num_choices and _called_router(path, above[1]) for layout in near)


def _called_router(path: str, above: str) -> bool:
    return ROUTER.search(path.removeprefix(f"{above}.")) is not None


def expand(plan: Mapping[str, _Entry], stacks: Mapping[str, ExpertsLayout]) -> dict[str, _Entry]:
    """Returns a plan with one path an expert in the place of `….experts.*.down_proj` and `….experts.0-3,7.down_proj`.

    Args:
        plan: paths, some of which stand for several experts of a stack.
        stacks: those of the model, by path.

    Raises:
        SettingError: two paths, or two spans of one, name the same expert.
    """
    expanded: dict[str, _Entry] = {}
    for path, entry in plan.items():
        for full in expand_path(path, stacks):
            if full in expanded:
                raise SettingError(
                    f"`plan` names {quote(full)} twice (again as {quote(path)}): name each expert once, and give other "
                    "widths with `overrides`."
                )
            expanded[full] = entry
    return expanded


def expand_path(path: str, stacks: Mapping[str, ExpertsLayout]) -> list[str]:
    """Returns the paths that a path stands for: one an expert, or the path itself if it names no experts there are."""
    parts = split_path(path)
    if parts is None or parts[0] not in stacks:
        return [path]
    stack, named, projection = parts
    count = stacks[stack].num_experts
    indices = range(count) if named == EVERY else indices_of(named, count)
    return [path] if indices is None else [expert_path(stack, index, projection) for index in indices]


def indices_of(named: str, count: int) -> Sequence[int] | None:
    """Returns the experts that `0-3,7` names, of `count` in all; None if some do not exist or one is named twice."""
    spans = [_span(part) for part in named.split(",")]
    named_in_all = sum(last - first + 1 for first, last in spans)  # more than there are: some are named twice
    if named_in_all > count or any(last >= count or first > last for first, last in spans):
        return None
    return [index for first, last in spans for index in range(first, last + 1)]


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def compact(plan: Plan, stacks: Mapping[str, ExpertsLayout]) -> dict[str, WeightScheme]:
    """Inverts [`expand`]: names the experts of a stack that are stored alike together, by projection.

    config.json would have 20,000 paths otherwise, and Transformers prints and copies it while it loads.
    """
    alike: dict[tuple[str, str, WeightScheme], list[int]] = {}  # in the plan's order; no experts: a path of its own
    for path, scheme in plan.items():
        parts = split_path(path)
        if parts is None or parts[0] not in stacks:
            alike[path, "", scheme] = []
        else:
            alike.setdefault((parts[0], parts[2], scheme), []).append(int(parts[1]))
    short: dict[str, WeightScheme] = {}
    for (path, projection, scheme), experts in alike.items():
        if experts:
            named = EVERY if len(experts) == stacks[path].num_experts else _spans(sorted(experts))
            path = expert_path(path, named, projection)
        short[path] = scheme
    return short


def saved_plan(plan: Plan, stacks: Mapping[str, ExpertsLayout]) -> dict[str, dict[str, Any]]:
    """Returns a plan as config.json has it, with the experts of a stack named together."""
    short = compact(plan, stacks)
    return plan_to_dict(short)


def _spans(experts: Sequence[int]) -> str:
    """Returns what names some experts, in rising order: `0-3,7`."""
    runs = [[e for _, e in run] for _, run in groupby(enumerate(experts), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def owner(path: str, stacks: Iterable[str]) -> str:
    """Returns the path of the module that holds a weight: the stack of an expert's weight, else `path` itself."""
    parts = split_path(path)
    return parts[0] if parts is not None and parts[0] in stacks else path


def parameter_names(paths: Iterable[str], stacks: Mapping[str, ExpertsLayout]) -> list[str]:
    """Returns the names of the parameters that hold some weights before they are packed, without `.weight`."""
    names: dict[str, None] = {}
    for path in paths:
        stack = owner(path, stacks)
        names |= dict.fromkeys([path] if stack == path else [f"{stack}.{name}" for name in stacks[stack].parameters])
    return list(names)


def stack_schemes(stack: str, layout: ExpertsLayout, plan: Plan) -> dict[str, ProjectionScheme]:
    """Returns how each projection of a stack is stored.

    Args:
        stack: its path.
        layout: of the stack.
        plan: names all of its weights or none.

    Returns:
        projection → its scheme; empty if the plan names none.

    Raises:
        ValueError: the plan names some of its weights only, or they differ in more than their bits.
    """
    paths = {
        name: [expert_path(stack, index, name) for index in range(layout.num_experts)] for name in layout.projections
    }
    every = [path for group in paths.values() for path in group]
    packed = [path for path in every if path in plan]
    if not packed:
        return {}
    if len(packed) < len(every):
        missing = next(path for path in every if path not in plan)
        raise ValueError(
            f"{stack}: the experts of a stack are packed all together, and {missing} is left out ({len(packed)} of "
            f"{len(every)} weights would be packed). Leave out the whole stack with `modules_to_not_convert`, or none."
        )
    return {
        name: ProjectionScheme.of([plan[path] for path in group], f"{stack}: {name}") for name, group in paths.items()
    }


def check_stacks(stacks: Mapping[str, ExpertsLayout], *plans: Plan) -> None:
    """Raises `SettingError` if a stack would be packed in part, or its experts differ in more than their bits."""
    for plan in plans:
        for stack, layout in stacks.items():
            try:
                stack_schemes(stack, layout, plan)
            except ValueError as error:
                raise SettingError(str(error)) from error


def packed_stacks(stacks: Mapping[str, ExpertsLayout], packed: Container[str]) -> dict[str, ExpertsLayout]:
    """Returns the stacks whose weights are `packed`: all of a stack's are, or none."""
    return {stack: layout for stack, layout in stacks.items() if expert_path(stack, 0, "down_proj") in packed}


def stack_sizes(
    stacks: Mapping[str, ExpertsLayout], outside: Mapping[str, SchemeOption], packed: Container[str]
) -> dict[str, int]:
    """Returns the saved bits of the packed stacks' parameters, without the blocks' codes."""
    sizes: dict[str, int] = {}
    for stack, layout in packed_stacks(stacks, packed).items():
        saved = sum(option.size for path, option in outside.items() if owner(path, (stack,)) == stack)
        sizes |= {f"{stack}.{name}": saved if name == "down_proj" else 0 for name in layout.parameters}
    return sizes
