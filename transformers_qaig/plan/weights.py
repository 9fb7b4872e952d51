"""Lists the weights of modules, experts one by one, and says why some cannot be packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from ..formats.scheme import MIN_GROUP_SIZE
from ..nn.experts_layout import ExpertsLayout
from .experts import expert_weights, is_router


def weights_in(
    modules: Mapping[str, nn.Module], stacks: Mapping[str, ExpertsLayout]
) -> Iterator[tuple[str, Tensor, str]]:
    """Yields every weight of two or more dims in `modules`: its path, and why it cannot be packed, if so.

    The weights of each expert of a stack come one by one, in the place of the stack's parameters.
    """
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2:
                continue
            path = f"{prefix}.{name}".removesuffix(".weight")
            parent, _, last = f"{prefix}.{name}".rpartition(".")
            layout = stacks.get(parent)
            if layout is not None and last in layout.parameters:
                if last == layout.parameters[0]:
                    yield from expert_weights(parent, layout, parameter.dtype)
                continue
            yield path, parameter, why_not(module.get_submodule(name.rpartition(".")[0]), name, path, stacks)


def why_not(module: nn.Module, name: str, path: str, stacks: Mapping[str, ExpertsLayout]) -> str:
    """Returns why this weight cannot be packed; empty if it can."""
    if type(module) is not nn.Linear:
        return f"a parameter of {type(module).__name__}, not of nn.Linear"
    if not name.endswith("weight"):
        return "not the weight of its linear"
    if min(module.in_features, module.out_features) < MIN_GROUP_SIZE:
        return f"a linear of {module.in_features} → {module.out_features}: too small to be worth packing"
    if is_router(path, module, stacks):
        return "a router: it chooses the experts"
    return ""
