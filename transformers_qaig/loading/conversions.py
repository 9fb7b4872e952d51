"""Transformers' conversions of a model's weights, kept from taking packed tensors for those that they merge or split.

A conversion whose pattern ends with `q_proj` also matches `q_proj.weight_packed`. It would merge the words of three
layers, and split them on loading. Renamings stay: they change where a module is called, for all of its tensors.
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

_PACKED = re.compile(
    r"\.weight_(?:packed|scale|zero_point|shape)$|\.(?:gate|up|down)_proj_(?:packed|scale|zero_point)$"
)


def is_packed_name(name: str) -> bool:
    """Whether a tensor of this name is a packed one, in a file or in a model."""
    return _PACKED.search(name) is not None


def loading_conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """Lists what the loader does to the names and tensors of `model`: the caller's `key_mapping`, then its own."""
    return sparing_packed(get_model_conversion_mapping(model, loading_arguments().get("key_mapping")))


def sparing_packed(conversions: Iterable[WeightTransform]) -> list[WeightTransform]:
    """Returns the conversions with copies of those that merge or split; the copies leave packed tensors alone."""
    return [_sparing(entry) if isinstance(entry, WeightConverter) else entry for entry in conversions]


def _sparing(converter: WeightConverter) -> WeightConverter:
    if getattr(type(converter), "spares_packed", False):
        return converter
    made = copy.copy(converter)
    made.__class__ = _sparing_class(type(converter))  # type: ignore[arg-type]
    return made


@cache
def _sparing_class(original: type[WeightConverter]) -> type[WeightConverter]:
    """Makes a subclass; Transformers makes reversed copies of a converter by its class, so saving spares them, too."""

    def rename_source_key(self: Any, source_key: str) -> tuple[str, str | None]:
        return (source_key, None) if is_packed_name(source_key) else original.rename_source_key(self, source_key)

    return type(
        f"{original.__name__}SparingPacked",
        (original,),
        {"__slots__": (), "spares_packed": True, "rename_source_key": rename_source_key},
    )
