"""AutoRound, in its mode for VLMs or language models: signed gradient descent on rounding and on each group's range.

A sample is a batch of its own, since padding would count in the loss. Gradients of eight are added up before each step:
that is the library's default batch. torch.compile is off: every length would be compiled anew.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from auto_round import AutoRound
from transformers import AutoProcessor

from accuracy_peers import Job, Quantized, stored_bits
from accuracy_peers.common import linears_of, load
from accuracy_peers.tensors import Inputs

BATCH = 8


def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    model = load(job.model)
    settings: dict[str, Any] = {
        **job.settings,
        "bits": job.bits,
        "group_size": job.group_size,
        "data_type": "int",
        "nsamples": len(samples),
        "seqlen": max(sample["input_ids"].shape[1] for sample in samples),
        "batch_size": 1,
        "gradient_accumulate_steps": BATCH,
        "enable_torch_compile": False,
    }
    if job.activation_bits == 8:
        settings |= {"act_bits": 8, "act_group_size": -1, "act_data_type": "int", "act_sym": True, "act_dynamic": True}
    start = time.perf_counter()
    rounding = AutoRound(
        model,
        **_readers(job.model),
        dataset=[{**sample} for sample in samples],
        device_map="cpu",
        **settings,
    )
    model, layers = rounding.quantize()
    seconds = time.perf_counter() - start
    linears = {path.removesuffix(".orig_layer"): module.weight.float() for path, module in linears_of(model).items()}
    if (chosen := {path for path, entry in layers.items() if entry["bits"] < 16}) != set(linears):
        raise RuntimeError(f"it chose other linears: {sorted(chosen ^ set(linears))}")
    zero_bits = 0 if settings["sym"] else job.bits
    bits = stored_bits(job.bits, job.group_size, zero_bits=zero_bits)
    return Quantized(model.to(torch.float32), linears, bits, seconds, settings)


def _readers(folder: str) -> dict[str, Any]:
    """Returns what reads text and pictures: the tokenizer alone for a language model, whose samples have no padding."""
    processor = AutoProcessor.from_pretrained(folder)
    if not hasattr(processor, "image_processor"):
        processor.pad_token = None  # else the ends of stories would count as padding
        return {"tokenizer": processor}
    return {
        "tokenizer": processor.tokenizer,
        "processor": processor,
        "image_processor": processor.image_processor,
    }
