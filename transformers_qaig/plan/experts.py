"""The weights of experts in a plan: their paths, which of them go together, and what routes to them."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..nn.experts_layout import ExpertsLayout, expert_path, find_experts, split_path
from ..nn.projection_scheme import ProjectionScheme
from ..scheme import MIN_GROUP_SIZE, Plan, WeightScheme
from ..utils.errors import SettingError
from .allocate import SchemeOption

EVERY = "*"
"""Stands for the index of every expert: `….experts.*.down_proj`."""
_ROUTER = re.compile(r"(?:^|[._])(?:router|gate|gating)(?:[._]|$)")
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

    It has an output for each expert of a stack below its parent or its parent's parent, and is called a gate or router.

    Args:
        path: of the linear in the model.
        linear: the linear.
        stacks: those of the model, by path.
    """
    parent = path.rpartition(".")[0]
    above = (parent, parent.rpartition(".")[0])
    near = (layout for stack, layout in stacks.items() if any(stack.startswith(f"{part}.") for part in above if part))
    return any(linear.out_features == layout.num_experts and _called_router(path, above[1]) for layout in near)


def _called_router(path: str, above: str) -> bool:
    return _ROUTER.search(path.removeprefix(f"{above}.")) is not None


def expand(plan: Mapping[str, _Entry], model: nn.Module) -> dict[str, _Entry]:
    """Returns a plan with one path an expert in the place of `….experts.*.down_proj`.

    Args:
        plan: paths, some of which stand for every expert of a stack.
        model: may be on the meta device.
    """
    stacks = find_experts(model)
    return {full: entry for path, entry in plan.items() for full in expand_path(path, stacks)}


def expand_path(path: str, stacks: Mapping[str, ExpertsLayout]) -> list[str]:
    """Returns the paths that a path stands for: one an expert for `….experts.*.down_proj`, else the path itself."""
    parts = split_path(path)
    if parts is None or parts[1] != EVERY or parts[0] not in stacks:
        return [path]
    return [expert_path(parts[0], index, parts[2]) for index in range(stacks[parts[0]].num_experts)]


def compact(plan: Plan, model: nn.Module) -> dict[str, WeightScheme]:
    """Inverts [`expand`] where all experts of a stack are stored alike: config.json would have 20,000 paths."""
    stacks = find_experts(model)
    alike: dict[str, set[WeightScheme]] = {}
    for path, scheme in plan.items():
        if (short := _short(path, stacks)) is not None:
            alike.setdefault(short, set()).add(scheme)
    short_plan: dict[str, WeightScheme] = {}
    for path, scheme in plan.items():
        short = _short(path, stacks)
        short_plan[path if short is None or len(alike[short]) > 1 else short] = scheme
    return short_plan


def _short(path: str, stacks: Mapping[str, ExpertsLayout]) -> str | None:
    parts = split_path(path)
    return f"{parts[0]}.{EVERY}.{parts[2]}" if parts is not None and parts[0] in stacks else None


def owner(path: str, stacks: Iterable[str]) -> str:
    """Returns the path of the module that holds a weight: the stack of an expert's weight, else `path` itself."""
    parts = split_path(path)
    return parts[0] if parts is not None and parts[0] in stacks else path


def stored_as(paths: Iterable[str], stacks: Mapping[str, ExpertsLayout]) -> list[str]:
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


def stack_sizes(
    stacks: Mapping[str, ExpertsLayout], outside: Mapping[str, SchemeOption], packed: Container[str]
) -> dict[str, int]:
    """Returns the saved bits of the packed stacks' parameters, without the blocks' codes."""
    sizes: dict[str, int] = {}
    for stack, layout in stacks.items():
        if expert_path(stack, 0, "down_proj") not in packed:
            continue
        saved = sum(option.size for path, option in outside.items() if owner(path, (stack,)) == stack)
        sizes |= {f"{stack}.{name}": saved if name == "down_proj" else 0 for name in layout.parameters}
    return sizes
