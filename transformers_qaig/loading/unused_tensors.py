"""Finds the tensors of a checkpoint that the model's class lacks, such as heads for multi-token prediction."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from ..plan.coverage import Coverage, PartSize
from ..utils.logging import get_logger
from ..utils.readable import readable_size
from .local_names import is_class_that_saved, loader_naming

OBSOLETE = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Patterns of tensors that Transformers drops from old checkpoints: models compute them."""

logger = get_logger(__name__)


@dataclass(frozen=True)
class UnusedTensor:
    """A tensor that is stored and that the model does not have.

    Attributes:
        name: as it would be called in the model; saving turns it into `key` again.
        key, file: where it is stored.
        shape: of its values.
        nbytes: their size in bytes.
    """

    name: str
    key: str
    file: str
    shape: tuple[int, ...]
    nbytes: int


def find_unused(
    model: PreTrainedModel, files: Sequence[str] | None, ignored: Collection[str] = ()
) -> list[UnusedTensor]:
    """Lists what the checkpoint holds beside the model's tensors.

    Args:
        model: may be on the meta device; with packed modules in place for a packed checkpoint.
        files: the checkpoint's shards, safetensors or what torch saved.
        ignored: regular expressions of names that do not count.
    """
    tensors, without = model.state_dict(), re.compile("|".join((*OBSOLETE, *ignored)))
    name_of, plain_name_of = loader_naming(model), loader_naming(model, convert=False)
    found = []
    for file in map(str, files or ()):
        for key, shape, nbytes in _stored(file):
            if name_of(key) not in tensors and not without.search(key):
                found.append(UnusedTensor(plain_name_of(key), key, file, shape, nbytes))
    return found


def _stored(file: str) -> list[tuple[str, tuple[int, ...], int]]:
    """Lists name, shape and bytes of every tensor in a file; empty for an unknown format."""
    if file.endswith(".bin"):
        return [(key, tuple(t.shape), t.nbytes) for key, t in load_state_dict(file, map_location="meta").items()]
    if not file.endswith(".safetensors"):
        return []
    try:
        with safe_open(file, "pt") as stored:
            slices = {key: stored.get_slice(key) for key in stored.keys()}
            return [(key, tuple(s.get_shape()), _nbytes(s.get_shape(), s.get_dtype())) for key, s in slices.items()]
    except (SafetensorError, OSError):  # the loader, which runs next, reports what is wrong with it
        return []


def _nbytes(shape: Sequence[int], dtype: str) -> int:
    """Returns the bytes of a safetensors type: its name ends with the bits of a value (F32, F8_E4M3), or is BOOL."""
    bits = 8 if dtype == "BOOL" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(shape) * bits // 8


def saved_tensors(model: PreTrainedModel, unused: Sequence[UnusedTensor]) -> list[UnusedTensor]:
    """Lists what is saved with the quantized model: all that lies in safetensors, if this class saved the checkpoint.

    Another class was asked to leave parts of a composite out.
    """
    return [u for u in unused if u.file.endswith(".safetensors")] if is_class_that_saved(model) else []


def warn_of_missing_layers(model: PreTrainedModel, unused: Sequence[UnusedTensor]) -> None:
    """Warns of stored layers that the model's lists of layers have no place for: config.json says fewer.

    Args:
        model: of the checkpoint.
        unused: from [`find_unused`].
    """
    modules = dict(model.named_modules())
    expected = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    layers: dict[str, int] = {}
    for u in unused:
        layer = _missing_layer(u.name, modules)
        if layer is not None and not any(pattern.search(u.key) for pattern in expected):
            layers[layer] = layers.get(layer, 0) + 1
    if layers:
        shown = ", ".join(list(layers)[:4]) + (", ..." if len(layers) > 4 else "")
        logger.warning(
            "%d tensors in the files are not read: by config.json, %s has no %s. Restore config.json if it was "
            "changed: the model was saved with these layers.", sum(layers.values()), type(model).__name__, shown,
        )  # fmt: skip


def _missing_layer(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Returns the path of the layer that a tensor belongs to, if a list of layers in the model ends before it."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if path not in modules:
            return path if isinstance(modules.get(path.rpartition(".")[0]), nn.ModuleList) else None
    return None


def report_unused(model: PreTrainedModel, unused: Sequence[UnusedTensor], coverage: Coverage) -> list[UnusedTensor]:
    """Reports in the log and in `coverage` what becomes of unused tensors: how many, their size, their names.

    Returns:
        those that are saved with the model; `coverage` counts their size.
    """
    saved = saved_tensors(model, unused)
    dropped = [u for u in unused if u not in saved]
    for tensors, fate in ((saved, "saved as they are"), (dropped, "not saved")):
        bits = 8 * sum(u.nbytes for u in tensors)
        if tensors:
            coverage.unused.append(
                f"{type(model).__name__} has no module for {_prefixes(tensors)} (tensors: {len(tensors)}, "
                f"{readable_size(bits)}): {fate}"
            )
            logger.log(logging.INFO if tensors is saved else logging.WARNING, "%s", coverage.unused[-1])
        if tensors is saved and bits:
            coverage.parts["tensors without a module"] = PartSize(bits, bits)
    return saved


def _prefixes(tensors: Sequence[UnusedTensor]) -> str:
    """Returns `mtp.*`, `model.visual.*`: the parts that the names begin with, eight at most."""
    parts = sorted({".".join(u.name.split(".")[: 2 if u.name.startswith("model.") else 1]) for u in tensors})
    return ", ".join(f"{part}.*" for part in parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")


def read_unused(unused: Sequence[UnusedTensor]) -> dict[str, Tensor]:
    """Reads their values from the file, for saving; what cannot be read any more is logged and left out."""
    tensors = {}
    for u in unused:
        try:
            with safe_open(u.file, "pt") as stored:
                tensor = stored.get_tensor(u.key)
            if tuple(tensor.shape) != u.shape:
                raise ValueError(f"it has shape {tuple(tensor.shape)} now and had {u.shape}")
            tensors[u.name] = tensor
        except (OSError, SafetensorError, ValueError) as error:
            logger.warning("%s is not saved, it cannot be read from %s any more: %s", u.key, u.file, error)
    return tensors
