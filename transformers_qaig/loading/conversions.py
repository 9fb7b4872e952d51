"""Transformers' conversions of a model's weights, kept from taking packed tensors for those that they change.

A conversion whose pattern ends with `q_proj` also matches `q_proj.weight_packed`. It would merge the words of three
layers, and split them on loading. Renamings change where a module is called, for all of its tensors. But one of
`.gate_proj.` also matches `.gate_proj_packed`, because its dots stand for any character. So a renaming sees the path of
a stack of experts, and not the names of its tensors.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightTransform

from .arguments import loading_arguments

_LINEAR = re.compile(r"\.weight_(?:packed|scale|zero_point|shape)$")
_STACK = re.compile(r"\.(?:gate|up|down)_proj_(?:packed|scale|zero_point)$")
_TENSOR = "packed_tensor"
"""Stands for the name of a stack's tensor; no pattern matches it."""


def is_packed_name(name: str) -> bool:
    """Whether a tensor of this name is a packed one, in a file or in a model."""
    return _LINEAR.search(name) is not None or _STACK.search(name) is not None


def loading_conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """Lists what the loader does to the names and tensors of `model`: the caller's `key_mapping`, then its own."""
    return sparing_packed(get_model_conversion_mapping(model, loading_arguments().get("key_mapping")))


def sparing_packed(conversions: Iterable[WeightTransform]) -> list[WeightTransform]:
    """Returns copies of the conversions that leave packed tensors alone, except that modules are renamed."""
    return [_sparing(entry) for entry in conversions]


def _sparing(entry: WeightTransform) -> WeightTransform:
    if getattr(type(entry), "spares_packed", False):
        return entry
    made = copy.copy(entry)
    made.__class__ = _sparing_class(type(entry))  # type: ignore[arg-type]
    return made


@cache
def _sparing_class(original: type[WeightTransform]) -> type[WeightTransform]:
    """Makes a subclass; Transformers makes reversed copies of an entry by its class, so saving spares them, too."""
    converts = issubclass(original, WeightConverter)

    def rename_source_key(self: Any, source_key: str) -> tuple[str, str | None]:
        if converts and is_packed_name(source_key):
            return source_key, None
        if _STACK.search(source_key) is None:
            return original.rename_source_key(self, source_key)
        stack, _, tensor = source_key.rpartition(".")
        renamed, pattern = original.rename_source_key(self, f"{stack}.{_TENSOR}")
        return renamed.removesuffix(_TENSOR) + tensor, pattern

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        state: Any = object.__reduce_ex__(self, protocol)[2]
        return _new, (original,), state  # pickle finds no class made here

    members = {
        "__slots__": (),
        "__reduce_ex__": reduce,
        "spares_packed": True,
        "rename_source_key": rename_source_key,
    }
    return type(f"{original.__name__}SparingPacked", (original,), members)


def _new(original: type[WeightTransform]) -> WeightTransform:
    sparing = _sparing_class(original)  # type: ignore[arg-type]
    return sparing.__new__(sparing)
