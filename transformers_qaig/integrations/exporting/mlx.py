"""Exports to MLX's affine quantization, which mlx-vlm and mlx-lm read: `w = scale * code + bias`.

Our words are MLX's own. A bias is `-scale * zero_point`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .grids import refuse_indivisible_groups, repeated, split_group, zero_points
from .published_names import PublishedNames
from .refusals import refuse_kinds, refuse_other_widths, refuse_rotated, refuse_rounded_inputs
from .saved_model import PackedWeight, SavedModel
from .writer import ShardWriter, model_config, write_json

NAME = "mlx"
ENGINES: tuple[str, ...] = ("mlx-vlm",)
WIDTHS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
LARGEST_ERROR = 0.1
"""A bias is rounded to the dtype of the scales if that moves no weight by more, in steps. Else both are float32."""


class Grid(NamedTuple):
    """The grid of one weight in MLX's words.

    Attributes:
        scales: `[N, G]`.
        biases: `[N, G]`, of the same dtype.
        error: the largest error of a weight, in steps.
    """

    scales: Tensor
    biases: Tensor
    error: float


def refusals(saved: SavedModel, engine: str) -> Iterator[Any]:
    """Yields what MLX cannot hold."""
    weights = list(saved.packed.values())
    yield from refuse_rotated(weights)
    yield from refuse_rounded_inputs(weights)
    yield from refuse_other_widths(weights, WIDTHS)
    yield from refuse_indivisible_groups(weights, GROUPS)
    reason = "mlx-vlm stacks experts in its own way for each family, which this export does not write"
    yield from refuse_kinds(weights, {"expert": (reason, "leave the experts out with modules_to_not_convert")})


def notes(saved: SavedModel, engine: str) -> Iterator[str]:
    """Yields how exact the biases are, and that the export was not opened on Apple's hardware."""
    errors = {packed.path: grid_of(saved, packed) for packed in saved.packed.values()}
    wide = [
        path
        for path, grid in errors.items()
        if grid.scales.dtype == torch.float32 != saved.weight(saved.packed[path]).scale.dtype
    ]
    worst = max((grid.error for grid in errors.values()), default=0.0)
    if worst:
        yield f"Biases are rounded to 16 bits: the largest error of a weight is {worst:.3f} of a step of its grid."
    if wide:
        yield f"{len(wide)} layers have scales in float32, as their biases need it: {wide[0]}, ..."
    split = [packed.path for packed in saved.packed.values() if packed.scheme.group_size not in GROUPS]
    if split:
        yield f"The groups of {len(split)} layers are written as several smaller ones with equal scales."


def grid_of(saved: SavedModel, packed: PackedWeight) -> Grid:
    """Returns the scales and biases of a weight."""
    weight = saved.weight(packed)
    exact = -weight.scale.double() * zero_points(weight).double()
    biases = exact.to(weight.scale.dtype)
    step = weight.scale.double().clamp(min=torch.finfo(torch.float64).tiny)
    error = float(((biases.double() - exact).abs() / step).max())
    if error > LARGEST_ERROR:
        return Grid(weight.scale.float(), exact.float(), 0.0)
    return Grid(weight.scale, biases, error)


def write(saved: SavedModel, folder: Path) -> None:
    """Writes the weights and config.json into `folder`."""
    shards, names = ShardWriter(folder, {"format": "mlx"}), PublishedNames(saved)
    for key, name, file in saved.unpacked_tensors():
        shards.add(names.published(key, name), saved.read(key, file))
    layers: dict[str, tuple[int, int]] = {}
    for packed in saved.packed.values():
        group = split_group(packed, GROUPS)
        assert group is not None
        path = names.published(f"{packed.key}.weight", f"{packed.path}.weight").removesuffix(".weight")
        grid = grid_of(saved, packed)
        shards.add(f"{path}.weight", saved.weight(packed).packed.view(torch.uint32))
        shards.add(f"{path}.scales", repeated(grid.scales, packed, group))
        shards.add(f"{path}.biases", repeated(grid.biases, packed, group))
        layers[path] = group, packed.scheme.bits
    shards.finish()
    config = model_config(saved.config, None)
    quantization = quantization_config(layers)
    write_json(folder / "config.json", {**config, "quantization": quantization, "quantization_config": quantization})


def quantization_config(layers: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Returns the `quantization` of config.json: the most frequent group size and bits, and the layers of others.

    Args:
        layers: path → group size and bits.
    """
    usual = Counter(layers.values()).most_common(1)[0][0]
    config: dict[str, Any] = {"group_size": usual[0], "bits": usual[1], "mode": "affine"}
    for path, (group, bits) in layers.items():
        if (group, bits) != usual:
            config |= {name: {"group_size": group, "bits": bits} for name in _spellings(path)}
    return config


def _spellings(path: str) -> list[str]:
    """Returns the names that mlx-vlm may give a layer: the path in the file, below `language_model`, `vision_tower`."""
    part, _, below = path.removeprefix("model.").partition(".")
    theirs = {"language_model": "language_model.model", "visual": "vision_tower"}.get(part)
    return [path] if theirs is None else list(dict.fromkeys([path, f"{theirs}.{below}"]))
