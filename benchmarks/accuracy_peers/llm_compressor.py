"""llm-compressor: GPTQ, with activation order on static groups, and AWQ; as in its examples, block by block.

Embeddings, head, tower and projector are left out, as there; the scheme is its W4A16 (or W4A8) preset at our width and
group size.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from llmcompressor import oneshot
from llmcompressor.modifiers.awq import AWQMapping, AWQModifier
from llmcompressor.modifiers.quantization import GPTQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch.utils.data import DataLoader

from accuracy_peers import Job, Quantized, stored_bits
from accuracy_peers.common import SKIPPED, linears_of, load
from accuracy_peers.tensors import Inputs

INSIDE = r"re:(?!.*vision).*layers.*\."
MAPPINGS = [
    AWQMapping(INSIDE + smooth + "$", [INSIDE + balance + "$" for balance in balanced])
    for smooth, balanced in {
        "input_layernorm": ["q_proj", "k_proj", "v_proj"],
        "v_proj": ["o_proj"],
        "post_attention_layernorm": ["gate_proj", "up_proj"],
        "up_proj": ["down_proj"],
    }.items()
]
"""The library's mappings for this kind of model. Its own patterns also match this tower's layers and then fail."""


def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    settings: dict[str, Any] = dict(job.settings)
    modifier, symmetric = settings.pop("modifier"), settings.pop("sym")
    preset = "W4A8" if job.activation_bits == 8 else "W4A16" if symmetric else "W4A16_ASYM"
    scheme = _scheme(job, preset, symmetric)
    ignore = [f"re:{pattern}" for pattern in SKIPPED]
    what: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ignore, **settings}
    recipe = AWQModifier(mappings=MAPPINGS, **what) if modifier == "awq" else GPTQModifier(**what)
    model = load(job.model)
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_: None  # 0.14 pins for AWQ even where there is nothing to pin for
    start = time.perf_counter()
    oneshot(
        model=model,
        dataset=DataLoader(samples, batch_size=None),
        recipe=[recipe],
        num_calibration_samples=len(samples),
        pipeline="sequential",
    )
    seconds = time.perf_counter() - start
    model = model.to(torch.float32)
    linears = {
        path: fake_quantize(
            module.weight.detach(), module.weight_scale, module.weight_zero_point, module.quantization_scheme.weights
        )
        for path, module in linears_of(model).items()
    }
    bits = stored_bits(job.bits, job.group_size, zero_bits=0 if symmetric else job.bits)
    told = {**settings, "modifier": modifier, "preset": preset, "weights": scheme.weights.model_dump(mode="json")}
    return Quantized(model, linears, bits, seconds, told)


def _scheme(job: Job, preset: str, symmetric: bool) -> QuantizationScheme:
    scheme = preset_name_to_scheme(preset, ["Linear"])
    weights = {"num_bits": job.bits, "group_size": job.group_size, "symmetric": symmetric}
    if job.group_size == -1:
        weights |= {"group_size": None, "strategy": "channel"}
    scheme.weights = type(scheme.weights)(**{**scheme.weights.model_dump(), **weights})
    return scheme
