"""Finds the parts of a model that a name or a pattern in the configuration means.

A pattern is read in this order:

1. with `*`, `?` or `[`, as a shell pattern on whole paths (`"*.layers.0.*"`), if it matches one;
2. as the name of a module or parameter: its path, or the end of its path (`"model.language_model.layers.0"`,
   `"vision_tower"`, `"q_proj"`);
3. as Transformers reads `modules_to_not_convert`: a regular expression from the start of a path, or the end of a path.

What it matches brings all that is below it. The end of a path does so only after a dot or an underscore: `"attn"` means
`self_attn`, and `"0"` does not mean layer 10. Experts may be named together, as in a plan: `"experts.0-3,7"`. The name
of a stack's parameter, such as `"gate_up_proj"`, reaches the weights of all its experts that are in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import translate
from functools import cached_property

import torch
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from ..nn.experts_layout import SPANS, ExpertsLayout
from ..utils.suggestion import did_you_mean
from .experts import ROUTER, expert_weights, indices_of

BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"
"""A boundary of names. Transformers 5.17 has none: there `"layers.1"` would reach `"layers.11"`."""
_TOGETHER = re.compile(rf"(?P<before>|.*\.)(?P<named>(?=[0-9,]*-|[0-9]+,)(?:{SPANS}))(?P<after>|\..*)")
"""A name with several experts in it, as in `experts.0-3,7.down_proj`."""
_NUMBER = "\ue000"
"""Stands for the number of an expert in such a name; no path has this character."""
_EXPERT = re.compile(r"experts\.[0-9][0-9,-]*(?=\.|$)")


class ModelNames:
    """The paths of a model's modules and parameters, a parameter `"q_proj.weight"` as `"q_proj"`."""

    def __init__(self, model: nn.Module, stacks: Mapping[str, ExpertsLayout]):
        modules = (path for path, _ in model.named_modules() if path)
        parameters = (path.removesuffix(".weight") for path, _ in model.named_parameters(remove_duplicate=False))
        self.most_experts = max((layout.num_experts for layout in stacks.values()), default=0)
        self.parameters = {  # of a stack, by the path of each expert's weight in them
            path: f"{stack}.{layout.parameter_of(path.rpartition('.')[2])}"
            for stack, layout in stacks.items()
            for path, *_ in expert_weights(stack, layout, torch.float32)
        }
        experts = (path for weight in self.parameters for path in (weight.rpartition(".")[0], weight))
        self.paths = list(dict.fromkeys([*modules, *parameters, *experts]))

    def matching(self, pattern: str) -> set[str]:
        """Returns all paths that a pattern reaches; empty if it matches nothing in this model."""
        pattern = pattern.removesuffix(".weight")
        together, numbers = _TOGETHER.fullmatch(pattern), [""]
        if together:
            numbers = [str(index) for index in indices_of(together["named"], self.most_experts) or []]
            if not numbers:
                return set()
            pattern = f"{together['before']}{_NUMBER}{together['after']}"
        any_of = f"(?:{'|'.join(numbers)})"  # one expression: a pass over all paths for each expert takes long
        if globbed := self._globbed(pattern, any_of):
            return self._with_children(globbed)
        each = tuple(pattern.replace(_NUMBER, number) for number in numbers)
        ends = {path for path in self.paths if path.endswith(each)}
        whole = {
            path for path in ends for one in each if path.endswith(one) and not path.removesuffix(one)[-1:].isalnum()
        }
        return self._with_children(whole | self._as_transformers(pattern.replace(_NUMBER, any_of))) | ends

    def ending(self, name: str) -> Counter[str]:
        """Counts the modules whose paths end with a bare name, by what they are called: `q_proj` for `"proj"`."""
        if not re.fullmatch(r"[\w.]+", name):
            return Counter()
        return Counter(path.rpartition(".")[2] for path in self.paths if path.endswith(name))

    def nearest(self, pattern: str) -> str:
        """Returns `" Did you mean ...?"` with the nearest path or end of a path; empty if none is near."""
        if pattern.startswith("re:"):
            return " Leave out 're:': a regular expression needs no mark here."
        pattern = pattern.removesuffix(".weight")
        if self.most_experts and _EXPERT.search(pattern):
            return f" Experts are numbered from 0 to {self.most_experts - 1} here."
        if self.most_experts and ROUTER.search(pattern):
            return " Routers always stay in full precision: remove the name."
        for wanted in dict.fromkeys((pattern, pattern.lstrip("*."), pattern.rpartition(".")[2])):
            ends = {path if "." in wanted else path.rpartition(".")[2]: None for path in self.paths}
            if hint := did_you_mean(wanted, ends):
                return hint
        return ""

    def _globbed(self, pattern: str, any_of: str) -> set[str]:
        if not set(pattern) & set("*?["):
            return set()
        matches = re.compile(translate(pattern).replace(_NUMBER, any_of)).match
        return {path for path in self.paths if matches(path)}

    def _as_transformers(self, pattern: str) -> set[str]:
        try:
            keys = [rf"(?:{pattern}){BOUNDARY}"]
            return {path for path in self.paths if not should_convert_module(path, keys)}
        except re.error:  # a name or a shell pattern, and no regular expression
            return set()

    @cached_property
    def _parts(self) -> dict[str, tuple[str, ...]]:
        return {path: tuple(_self_and_parents(path)) for path in self.paths}

    def _with_children(self, found: set[str]) -> set[str]:
        reached = {path for path, parts in self._parts.items() if not found.isdisjoint(parts)}
        return reached | {path for path, parameter in self.parameters.items() if parameter in found}


def _self_and_parents(path: str) -> Iterable[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
