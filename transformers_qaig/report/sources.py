"""Finds the report of a saved model or of a work folder; of a model without one, what its own files say."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..config import QAIGConfig
from ..nn.experts_layout import count_weights
from ..utils.json_file import read_json
from ..utils.quote import quote
from .record import KIND, VERSION, Record
from .record_file import BESIDE_MODEL, IN_WORK_DIR, checked, read_record

LARGEST_CONFIG = 256 << 20
_EXPERTS = re.compile(r"\.experts\.[\d,\-*]+\.")
_OF_STACK = re.compile(r"^(.+\.experts)\.(\w+)_(?:packed|scale|zero_point)$")
_BLOCK = re.compile(r"^(.*?\.\d+)\.(.+)$")
WHOLE_WEIGHTS = "16-bit weights are assumed before"
Shapes = Mapping[str, tuple[list[int], int]]
Widths = Mapping[tuple[str, str], Counter[int]]
"""Block and name of a layer → how many of its weights have so many bits."""


def find_record(folder: Path) -> Record:
    """Returns the report in a folder.

    Args:
        folder: of a saved model, or a `work_dir`.

    Raises:
        OSError: there is no report, and no quantized model to make one of.
        RecordError: the report's file cannot be read.
    """
    for name in (BESIDE_MODEL, IN_WORK_DIR):
        if (folder / name).is_file():
            return read_record(folder / name)
    if (folder / "config.json").is_file():
        return record_of_files(folder)
    if (folder / "run.json").is_file():
        raise OSError(
            f"{folder} is a work_dir without {IN_WORK_DIR}: no block is done yet, or an older version wrote it."
        )
    raise OSError(f"{folder} holds no report: give the folder of a model quantized by this package, or a work_dir.")


def record_of_files(folder: Path) -> Record:
    """Makes a report of a saved model's config and weights: sizes and bits, nothing of the run.

    Raises:
        OSError: the model was not quantized by this package, or a file cannot be read.
    """
    config = read_json(folder / "config.json", LARGEST_CONFIG)
    settings = config.get("quantization_config") if isinstance(config, Mapping) else None
    if not isinstance(settings, Mapping) or settings.get("quant_method") != "qaig":
        method = quote(settings.get("quant_method")) if isinstance(settings, Mapping) else "none"
        raise OSError(f"{folder} is no model quantized by this package (quant_method: {method}): there is no report.")
    widths = _widths(settings.get("plan"))
    return checked(
        {
            "kind": KIND,
            "version": VERSION,
            "model": folder.resolve().name,
            "recipe": str(_recipe(settings)),
            "repeat": repr(QAIGConfig.from_dict(dict(settings))),
            "layers": [
                {"block": block, "name": name, "widths": {str(bits): number for bits, number in counts.items()}}
                for (block, name), counts in widths.items()
            ],
            "sizes": sizes_of(read_shapes(folder), widths),
            "facts": [["before", WHOLE_WEIGHTS]],
        }
    )


def _widths(plan: Any) -> Widths:
    """Counts the weights of each layer in a plan by their bits: experts of one stack are one layer."""
    entries = plan.items() if isinstance(plan, Mapping) else ()
    bits = {path: entry.get("bits") for path, entry in entries if isinstance(entry, Mapping)}
    found: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for path, number in count_weights(bits).items():
        if type(width := bits[path]) is int and width > 0:
            found[layer_of(path)][width] += number
    return found


def layer_of(path: str) -> tuple[str, str]:
    """Splits a plan's path, which may name several experts together, into block and name."""
    path = _EXPERTS.sub(".experts.*.", path)
    found = _BLOCK.match(path)
    parent, _, name = path.rpartition(".")
    return (found[1], found[2]) if found else ((parent, name) if parent else (path, ""))


def read_shapes(folder: Path) -> dict[str, tuple[list[int], int]]:
    """Returns shape and bytes of every stored tensor, from the files' headers."""
    shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():
                piece = stored.get_slice(name)
                shape = piece.get_shape()
                shapes[name] = (shape, math.prod(shape) * _WIDTHS.get(piece.get_dtype(), 4))
    return shapes


_WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def sizes_of(shapes: Shapes, widths: Widths) -> list[Record]:
    """Adds up the bytes of each part of the model, before and after.

    Args:
        shapes: shape and bytes of the stored tensors.
        widths: of the packed layers.
    """
    parts: dict[str, Record] = {}
    for name, (shape, size) in shapes.items():
        if not size:
            continue
        of_stack = _OF_STACK.match(name)
        path = f"{of_stack[1]}.*.{of_stack[2]}" if of_stack else name.rpartition(".")[0]
        counts = widths.get(layer_of(path))
        part = parts.setdefault(_part(path), {"name": _part(path), "bits": [], "before": 0.0, "after": 0.0})
        part["after"] += size
        if counts is None:
            part["before"] += size
        elif name.endswith("_packed"):
            mean = sum(bits * number for bits, number in counts.items()) / counts.total()
            part["before"] += 2 * math.prod(shape) * 32 / mean
            part["bits"] = sorted({*part["bits"], *counts})
    return sorted(parts.values(), key=lambda part: -part["before"])


def _part(path: str) -> str:
    """Returns the part of the model that a tensor belongs to: its list of blocks, or its module's first two names."""
    found = _BLOCK.match(f"{path}.")
    return found[1].rpartition(".")[0] if found else ".".join(path.split(".")[:2]) or path


def _recipe(settings: Mapping[str, Any]) -> Any:
    recipe = settings.get("recipe", "")
    return recipe.get("name", "") if isinstance(recipe, Mapping) else recipe


def download(name: str, fetch: Callable[[str], str]) -> Path:
    """Fetches the files of a model on the Hub that a report is made of, and returns their folder.

    Args:
        name: the Hub id.
        fetch: downloads one file of the repository, and returns where it is.

    Raises:
        OSError: the repository has no report.
    """
    try:
        return Path(fetch(BESIDE_MODEL)).parent
    except Exception as error:
        raise OSError(
            f"{name} has no {BESIDE_MODEL} on the Hub ({type(error).__name__}). Download the model, and give its "
            "folder."
        ) from error
