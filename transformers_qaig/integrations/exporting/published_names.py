"""The names of tensors in published files, where they differ from those that Transformers 5 saves."""

from __future__ import annotations

import re

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from ...loading.local_names import loader_naming
from ...nn.experts_layout import PROJECTIONS, split_path
from .saved_model import PackedWeight, SavedModel

_TOWERS = ("CLIPVisionModel", "SiglipVisionModel")
"""Towers whose published files, and engines, have a level `vision_model` that Transformers 5 dropped."""


def published_experts(saved: SavedModel) -> dict[str, str]:
    """Returns projection → its name in files that hold experts one by one; empty if Transformers loads none such."""
    names: dict[str, str] = {}
    for entry in get_model_conversion_mapping(saved.model):
        sources = [re.search(r"experts\.\*\.(\w+)\.weight", pattern) for pattern in entry.source_patterns]
        if isinstance(entry, WeightConverter) and sources and all(sources):
            found = [source[1] for source in sources if source is not None]
            target = entry.target_patterns[0].rpartition(".")[2]
            wanted = ["gate_proj", "up_proj"] if target == "gate_up_proj" else [target]
            names |= dict(zip(wanted, found)) if len(wanted) == len(found) else {}
    return names if names.keys() >= set(PROJECTIONS) else {}


class PublishedNames:
    """The names of tensors as published files have them.

    Args:
        saved: the model.
    """

    def __init__(self, saved: SavedModel) -> None:
        self._name_of = loader_naming(saved.model, convert=False)
        self._projections = published_experts(saved)
        self._flat = [
            path for path, module in saved.model.named_modules()
            if type(module).__name__ in _TOWERS and not hasattr(module, "vision_model")
        ]  # fmt: skip

    def expert(self, packed: PackedWeight) -> str:
        """Returns the key of a packed weight, of an expert as its family calls the projections."""
        parts = split_path(packed.key) if packed.kind == "expert" else None
        if parts is None:
            return packed.key
        return ".".join((*parts[:2], self._projections.get(parts[2], parts[2])))

    def published(self, key: str, name: str) -> str:
        """Returns the key with the level `vision_model` of CLIP and SigLIP, where Transformers loads that, too."""
        for tower in self._flat:
            if not name.startswith(f"{tower}."):
                continue
            below = name.removeprefix(f"{tower}.")
            longer = f"{key.removesuffix(below)}vision_model.{below}"
            if key.endswith(below) and self._name_of(longer) == name:
                return longer
        return key
