"""Exports to GPTQ's packing; vLLM reads symmetric weights of 4 and 8 bits, GPTQModel all that the format holds.

Our words are GPTQ's own, transposed. Format `gptq` stores a zero point less one, `gptq_v2` the zero point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...formats.packing import pack_zero_point
from ...structure import find_lm_head
from .grids import note_on_float16, scales_in_float16, zero_points
from .patterns import patterns, unpacked_subtrees
from .published_names import PublishedNames
from .refusals import (
    Refusal,
    refuse_all_but_linears,
    refuse_other_group_sizes,
    refuse_other_widths,
    refuse_permuted,
    refuse_reshaped,
    refuse_several_schemes,
    refuse_unequal_fused,
    refuse_where,
)
from .saved_model import PackedWeight, SavedModel
from .writer import ShardWriter, model_config, write_json

NAME = "gptq"
ENGINES: tuple[str, ...] = ("vllm", "gptqmodel")
WIDTHS = {"vllm": (4, 8), "gptqmodel": (2, 3, 4, 8)}
GROUPS = (-1, 32, 64, 128)


def refusals(saved: SavedModel, engine: str) -> Iterator[Refusal]:
    """Yields what `engine` cannot read from GPTQ files."""
    weights = list(saved.packed.values())
    yield from refuse_all_but_linears(weights, "GPTQ")
    yield from refuse_other_widths(weights, WIDTHS[engine])
    yield from refuse_other_group_sizes(weights, GROUPS)
    yield from refuse_where(
        weights,
        lambda weight: (
            weight.in_features * weight.scheme.bits % 32 != 0 or weight.out_features * weight.scheme.bits % 32 != 0
        ),
        "GPTQ packs whole words along both dimensions, and these layers do not fill them",
        "leave them out with modules_to_not_convert",
    )
    if engine == "vllm":
        yield from refuse_where(
            weights,
            lambda weight: not weight.scheme.sym,
            "vLLM reads symmetric GPTQ weights alone",
            "quantize with sym=True; or export as compressed-tensors; or --for gptqmodel (Python: engine='gptqmodel')",
        )
        yield from refuse_several_schemes(weights, "vLLM reads one scheme from GPTQ files")
        yield from refuse_unequal_fused(weights, saved.unpacked_linears())
        yield from refuse_permuted(weights, saved.permutes_rows)
        yield from refuse_reshaped(weights, saved.reshapes_packed)
    yield from scales_in_float16(saved)[1]


def notes(saved: SavedModel, engine: str) -> Iterator[str]:
    """Yields how exact float16 scales are, and who cannot read the file."""
    yield from note_on_float16(saved)
    if not _is_symmetric(saved):
        yield "The zero points are stored as in gptq_v2, which GPTQModel reads and vLLM does not."
    if len({packed.scheme for packed in saved.packed.values()}) > 1:
        yield "It has several schemes: load it with GPTQModel.load. Transformers reads one, and fails."


def _is_symmetric(saved: SavedModel) -> bool:
    return all(packed.scheme.sym for packed in saved.packed.values())


def write(saved: SavedModel, folder: Path) -> None:
    """Writes the weights and config.json into `folder`."""
    shards, names, symmetric = ShardWriter(folder), PublishedNames(saved), _is_symmetric(saved)
    for key, name, file in saved.unpacked_tensors():
        shards.add(names.published(key, name), saved.read(key, file))
    for packed in saved.packed.values():
        weight = saved.weight(packed)
        path = names.published(f"{packed.key}.weight", f"{packed.path}.weight").removesuffix(".weight")
        zeros = zero_points(weight) - (1 if symmetric else 0)
        group = packed.in_features // weight.scale.shape[1]
        shards.add(f"{path}.qweight", weight.packed.t())
        shards.add(f"{path}.qzeros", pack_zero_point(zeros, weight.bits).t())
        shards.add(f"{path}.scales", weight.scale.t().to(torch.float16))
        shards.add(f"{path}.g_idx", torch.arange(packed.in_features, dtype=torch.int32) // group)
    shards.finish()
    write_json(folder / "config.json", model_config(saved.config, quantization_config(saved)))


def quantization_config(saved: SavedModel) -> dict[str, Any]:
    """Returns the `quantization_config` of config.json: the most frequent scheme, and by expression the others."""
    groups: dict[tuple[int, int, bool], list[PackedWeight]] = {}
    for packed in saved.packed.values():
        scheme = packed.scheme
        groups.setdefault((scheme.bits, scheme.group_size, scheme.sym), []).append(packed)
    usual = Counter({key: len(held) for key, held in groups.items()}).most_common(1)[0][0]
    unpacked = patterns(unpacked_subtrees(saved.model, saved.plan), subtree=True)
    dynamic: dict[str, dict[str, Any]] = {f"-:{pattern.removeprefix('re:')}": {} for pattern in unpacked}
    for (bits, group_size, sym), held in groups.items():
        if (bits, group_size, sym) != usual:
            settings = {"bits": bits, "group_size": group_size, "sym": sym}
            for pattern in patterns(packed.path for packed in held):
                dynamic[f"+:{pattern.removeprefix('re:')}"] = settings
    return {
        "quant_method": NAME,
        "bits": usual[0],
        "group_size": usual[1],
        "sym": usual[2],
        "desc_act": False,
        "checkpoint_format": "gptq" if _is_symmetric(saved) else "gptq_v2",
        "lm_head": find_lm_head(saved.model).path in saved.packed,
        "dynamic": dynamic,
    }
