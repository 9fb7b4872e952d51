"""Exports to compressed-tensors' `pack-quantized`, which vLLM, SGLang and Transformers read.

Our words are that format's own, so no tensor changes. What changes is config.json, the guard, and some names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...formats.scheme import WeightScheme
from ...nn.experts import QAIGExperts
from ...structure import find_lm_head
from .patterns import patterns, unpacked_subtrees
from .published_names import PublishedNames, published_experts
from .refusals import (
    Refusal,
    refuse_kinds,
    refuse_reshaped,
    refuse_rotated,
    refuse_several_schemes,
    refuse_unequal_experts,
    refuse_unequal_fused,
    refuse_where,
)
from .saved_model import PackedWeight, SavedModel
from .writer import ShardWriter, model_config, write_json

NAME = "compressed-tensors"
ENGINES: tuple[str, ...] = ("transformers", "vllm")
_SYMMETRIC = "quantize with sym=True"


def refusals(saved: SavedModel, engine: str) -> Iterator[Refusal]:
    """Yields what `engine` could not read, or would read wrongly."""
    weights = list(saved.packed.values())
    yield from refuse_rotated(weights)
    if saved.is_tied:
        yield Refusal(
            "head and embeddings are one packed tensor, and the format stores them as two modules",
            "quantize without embedding_bits",
        )
    yield from _unusual_experts(saved)
    yield from (_for_vllm if engine == "vllm" else _for_transformers)(saved, weights)


def _unusual_experts(saved: SavedModel) -> Iterator[Refusal]:
    odd = [path for path, module in saved.model.named_modules() if isinstance(module, QAIGExperts) and (
        module.stack.has_bias or module.stack.identities or not module.stack.has_gate)]  # fmt: skip
    if odd:
        yield Refusal(
            "these experts have biases, no gate or identities, and no engine reads them packed expert by expert",
            "leave the experts out with modules_to_not_convert",
            tuple(odd),
        )


def _for_transformers(saved: SavedModel, weights: list[PackedWeight]) -> Iterator[Refusal]:
    causes = _why_dequantized(saved)
    if not causes:
        return
    reason = (
        f"Transformers reads {' and '.join(causes)} only with `dequantize`, takes one scheme for all weights then, and "
        "reads those of other schemes wrongly without a word"
    )
    without = " and ".join(dict.fromkeys(causes.values()))
    for refusal in refuse_several_schemes(weights, reason):
        yield Refusal(
            refusal.reason, f"{refusal.remedy}; or {without}; or export for vLLM (engine='vllm')", refusal.paths
        )
    experts = [weight for weight in weights if weight.kind == "expert"]
    yield from refuse_where(
        experts,
        lambda weight: not weight.scheme.sym,
        "Transformers reads the zero points of no expert",
        f"{_SYMMETRIC}; or export for vLLM (engine='vllm')",
    )
    if experts and not published_experts(saved):
        yield Refusal(
            f"{type(saved.model).__name__} of Transformers cannot load experts one by one",
            "export for vLLM (engine='vllm'), or leave the experts out with modules_to_not_convert",
            (experts[0].path,),
        )


def _for_vllm(saved: SavedModel, weights: list[PackedWeight]) -> Iterator[Refusal]:
    yield from refuse_where(
        weights,
        lambda weight: not weight.scheme.sym and saved.permutes_rows(weight.path),
        "vLLM permutes the rows of q and k of this model, and not their zero points",
        _SYMMETRIC,
    )
    yield from refuse_reshaped(weights, saved.reshapes_packed)
    yield from refuse_unequal_fused(weights, saved.unpacked_linears())
    yield from refuse_unequal_experts(weights)
    yield from refuse_where(
        weights,
        lambda weight: weight.kind == "embedding" and (not weight.scheme.sym or weight.scheme.bits not in (2, 4, 8)),
        "vLLM reads packed embeddings only if they are symmetric and of 2, 4 or 8 bits",
        f"{_SYMMETRIC} and embedding_bits=4 or 8",
    )
    yield from refuse_kinds(
        [weight for weight in weights if weight.scheme.activation_bits == 8],
        {"expert": ("vLLM rounds the inputs of no packed expert", "quantize with activation_bits=16")},
    )


def notes(saved: SavedModel, engine: str) -> Iterator[str]:
    """Yields what a user of the export should know."""
    weights = list(saved.packed.values())
    if engine == "transformers":
        if any(True for _ in _for_vllm(saved, weights)):
            yield "vLLM would refuse this export; export with engine='vllm' tells why."
        if _is_dequantized(saved):
            yield "Transformers dequantizes these weights on loading: they take the memory of full precision there."
    elif _is_dequantized(saved) and any(True for _ in _for_transformers(saved, weights)):
        yield "Do not load this export with Transformers: it would read some weights wrongly, without a word."
    odd = sorted({weight.scheme.group_size for weight in weights} - {-1, 32, 64, 128})
    if odd:
        yield f"Groups of {', '.join(map(str, odd))} have no Marlin kernel: vLLM takes a slower one, or refuses them."


def write(saved: SavedModel, folder: Path) -> None:
    """Writes the weights and config.json into `folder`."""
    shards, names = ShardWriter(folder), PublishedNames(saved)
    for key, name, file in saved.unpacked_tensors():
        shards.add(names.published(key, name), saved.read(key, file))
    for packed in saved.packed.values():
        weight = saved.weight(packed)
        prefix = names.published(f"{names.expert(packed)}.weight", f"{packed.path}.weight")
        tensors = {"packed": weight.packed, "scale": weight.scale, "zero_point": weight.zero}
        for part, tensor in tensors.items():
            if tensor is not None:  # those of experts are views of one tensor, and a file shares no memory
                shards.add(f"{prefix}_{part}", tensor.clone() if packed.kind == "expert" else tensor)
        shards.add(f"{prefix}_shape", torch.tensor([packed.out_features, packed.in_features]))
    shards.finish()
    write_json(folder / "config.json", model_config(saved.config, quantization_config(saved)))


def quantization_config(saved: SavedModel) -> dict[str, Any]:
    """Returns the `quantization_config` of config.json."""
    groups: dict[WeightScheme, list[PackedWeight]] = {}
    for weight in saved.packed.values():
        groups.setdefault(weight.scheme, []).append(weight)
    uniform = len(groups) == 1
    config: dict[str, Any] = {
        "quant_method": NAME,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": {
            f"group_{number}": _group(scheme, _targets(saved, weights, uniform))
            for number, (scheme, weights) in enumerate(groups.items())
        },
        "ignore": patterns(unpacked_subtrees(saved.model, saved.plan), subtree=True),
    }
    return {**config, "dequantize": True} if _is_dequantized(saved) else config


def _targets(saved: SavedModel, weights: list[PackedWeight], uniform: bool) -> list[str]:
    """Returns what a group applies to: names, or all linears if there is one group. vLLM's head is no linear."""
    if not uniform:
        return patterns(weight.path for weight in weights)
    head = find_lm_head(saved.model).path
    return ["Linear", *patterns(weight.path for weight in weights if weight.kind == "embedding" or weight.path == head)]


def _group(scheme: WeightScheme, targets: list[str]) -> dict[str, Any]:
    per_channel = scheme.group_size == -1
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.sym,
        "strategy": "channel" if per_channel else "group",
        "group_size": None if per_channel else scheme.group_size,
        "dynamic": False,
        "actorder": None,
    }
    rounded = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "format": "pack-quantized",
        "targets": targets,
        "weights": weights,
        "input_activations": rounded if scheme.activation_bits == 8 else None,
        "output_activations": None,
    }


def _is_dequantized(saved: SavedModel) -> bool:
    """Whether Transformers must dequantize."""
    return bool(_why_dequantized(saved))


def _why_dequantized(saved: SavedModel) -> dict[str, str]:
    """Returns the packed parts that Transformers' other way cannot read, each with how to quantize without it.

    SigLIP's class initializes the weights of all its linears, and packed ones have none.
    """
    siglip = [path for path, module in saved.model.named_modules() if type(module).__name__.startswith("Siglip")]
    weights = saved.packed.values()
    remedies = {
        "asymmetric weights": (_SYMMETRIC, lambda weight: not weight.scheme.sym),
        "packed embeddings": ("leave out embedding_bits", lambda weight: weight.kind == "embedding"),
        "experts": (
            "leave the experts out with modules_to_not_convert",
            lambda weight: weight.kind == "expert",
        ),
        "SigLIP's packed tower": (
            "leave out vision_bits",
            lambda weight: any(weight.path.startswith(f"{path}.") for path in siglip),
        ),
    }
    return {cause: remedy for cause, (remedy, applies) in remedies.items() if any(map(applies, weights))}
