"""Exports to AWQ's gemm packing: 4 bits, zero points, scales in float16. vLLM, OpenVINO and ONNX Runtime read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...formats.packing import unpack
from .grids import note_on_float16, refuse_indivisible_groups, repeated, scales_in_float16, split_group, zero_points
from .patterns import module_names, unpacked_subtrees
from .published_names import PublishedNames
from .refusals import (
    Refusal,
    refuse_all_but_linears,
    refuse_other_widths,
    refuse_permuted,
    refuse_reshaped,
    refuse_unequal_fused,
    refuse_where,
)
from .saved_model import SavedModel
from .writer import ShardWriter, model_config, write_json

NAME = "awq"
ENGINES: tuple[str, ...] = ("vllm", "openvino")
GROUPS = (32, 64, 128)
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of 8 output channels each 4 bits of a word hold, from the lowest on."""


def refusals(saved: SavedModel, engine: str) -> Iterator[Refusal]:
    """Yields what AWQ cannot hold."""
    weights = list(saved.packed.values())
    yield from refuse_all_but_linears(weights, "AWQ")
    yield from refuse_other_widths(weights, (4,))
    yield from refuse_indivisible_groups(weights, GROUPS)
    yield from refuse_where(
        weights,
        lambda weight: weight.out_features % 8 != 0,
        "AWQ packs 8 output channels into a word, and these layers have another number of them",
        "leave them out with modules_to_not_convert",
    )
    yield from refuse_unequal_fused(weights, saved.unpacked_linears())
    if engine == "vllm":
        yield from refuse_permuted(weights, saved.permutes_rows)
        yield from refuse_reshaped(weights, saved.reshapes_packed)
    yield from scales_in_float16(saved)[1]


def notes(saved: SavedModel, engine: str) -> Iterator[str]:
    """Yields how exact float16 scales are."""
    yield from note_on_float16(saved)


def write(saved: SavedModel, folder: Path) -> None:
    """Writes the weights and config.json into `folder`."""
    shards, names = ShardWriter(folder), PublishedNames(saved)
    sizes = {split_group(packed, GROUPS) for packed in saved.packed.values()}
    group = min(size for size in sizes if size is not None)
    for key, name, file in saved.unpacked_tensors():
        shards.add(names.published(key, name), saved.read(key, file))
    for packed in saved.packed.values():
        weight = saved.weight(packed)
        path = names.published(f"{packed.key}.weight", f"{packed.path}.weight").removesuffix(".weight")
        shards.add(f"{path}.qweight", packed_gemm(unpack(weight.packed, 4, weight.in_features).t()))
        shards.add(f"{path}.qzeros", packed_gemm(repeated(zero_points(weight), packed, group).t()))
        shards.add(f"{path}.scales", repeated(weight.scale, packed, group).t().to(torch.float16))
    shards.finish()
    quantization: dict[str, Any] = {
        "quant_method": NAME,
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": module_names(saved.model, unpacked_subtrees(saved.model, saved.plan)),
    }
    write_json(folder / "config.json", model_config(saved.config, quantization))


def packed_gemm(codes: Tensor) -> Tensor:
    """Packs codes uint8 `[K, N]` of 4 bits along N in AWQ's order: int32 `[K, N / 8]`."""
    ordered = codes.reshape(len(codes), -1, 8)[..., list(_ORDER)].to(torch.int32)
    words = torch.zeros(ordered.shape[:2], dtype=torch.int32)
    for place in range(8):
        words |= ordered[..., place] << (4 * place)
    return words
