r"""Names modules by regular expressions that fit Transformers' names of modules, and vLLM's.

One language model is `model.language_model.layers` in Transformers, `language_model.model.layers` in vLLM, and
`model.layers` in the files of some families. So an expression keeps the part of the model, the module that holds the
list of layers, and everything from that list on:
`re:(.*\\.)?language_model\\.(.*\\.)?layers\\.(3|5)\\.mlp\\.down_proj$`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import nn

_TRUNK = "model"
"""The name of a base model, which comes and goes."""


def patterns(paths: Iterable[str], *, subtree: bool = False) -> list[str]:
    """Returns expressions that match the modules at `paths`; those that differ in the layer's number are joined.

    Args:
        paths: in the model.
        subtree: whether all modules below them match, too.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for path in paths:
        found.setdefault(_split(path), []).append(next(iter(re.findall(r"(?<=\.)\d+(?=\.|$)", path)), ""))
    end = r"(\..*)?$" if subtree else "$"
    return [rf"re:(.*\.)?{before}{_alternatives(numbers)}{after}{end}" for (_, before, after), numbers in found.items()]


def _split(path: str) -> tuple[str, str, str]:
    """Splits a path at its first number into the whole part before, an expression of that, and one of what follows."""
    match = re.match(r"(.*?)\.\d+(?=\.|$)(.*)", path)
    if match is None:
        parts = [part for part in path.split(".") if part != _TRUNK]
        return path, _anchored(parts[:-1], parts[-1]), ""
    parts = [part for part in match[1].split(".") if part != _TRUNK]
    return match[1], _anchored(parts[:-1], parts[-1]) + r"\.", re.escape(match[2])


def _anchored(above: list[str], name: str) -> str:
    # Levels between may differ. The last tells two lists apart, which Mllama's tower has.
    ends = dict.fromkeys([*above[:1], *above[-1:]])
    return "".join(rf"{re.escape(each)}\.(.*\.)?" for each in ends) + re.escape(name)


def _alternatives(numbers: list[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"


def unpacked_subtrees(model: nn.Module, packed: Collection[str]) -> list[str]:
    """Lists the highest modules that have a matrix of weights and nothing packed below them.

    A router counts, which Transformers has as a parameter and engines as a linear.
    """
    holds_packed = {""}
    for path in packed:
        parts = path.split(".")
        holds_packed |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    found: list[str] = []

    def visit(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if below in holds_packed:
                visit(child, below)
            elif _has_matrix(child):
                found.append(below)

    visit(model, "")
    return found


def _has_matrix(module: nn.Module) -> bool:
    return any(
        parameter.ndim >= 2
        for part in module.modules()
        if not isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    )


def module_names(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Returns names for engines that look for a text in a module's name: the part of a model, or a whole path.

    Transformers looks at the beginning of a path, so a part has its path there, too. A block is named by what is in it,
    because `layers.1` is in the name `layers.10`.

    Args:
        model: whose modules they are.
        paths: of the modules.
    """
    names: list[str] = []
    for path in paths:
        inside = [name for name, child in model.get_submodule(path).named_children() if _has_matrix(child)]
        if inside and path.rpartition(".")[2].isdecimal():
            names += module_names(model, [f"{path}.{name}" for name in inside])
            continue
        parts = [part for part in path.split(".") if part != _TRUNK]
        if not any(part.isdecimal() for part in parts):
            names += dict.fromkeys([".".join(parts), path])
            continue
        names += [path, f"{parts[0]}.{_TRUNK}.{'.'.join(parts[1:])}"]
    return names
