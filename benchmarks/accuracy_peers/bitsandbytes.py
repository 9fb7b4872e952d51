"""bitsandbytes: 4-bit NormalFloat through Transformers, blocks of 64 weights; reads no data."""

from __future__ import annotations

import time

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from accuracy_peers import Job, Quantized, Unavailable, stored_bits
from accuracy_peers.common import SKIPPED, linears_of
from accuracy_peers.tensors import Inputs

BLOCK = 64
"""The library's own default, which Transformers cannot change."""


def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    if job.group_size != BLOCK:
        raise Unavailable(f"nf4 in Transformers has blocks of {BLOCK} weights")
    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=list(SKIPPED),
        **settings,
    )
    start = time.perf_counter()
    model = AutoModelForImageTextToText.from_pretrained(
        job.model, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    seconds = time.perf_counter() - start
    made = linears_of(model, Linear4bit)
    for module in made.values():
        # A kernel for CPUs with AVX512-BF16 rounds inputs and scales to bfloat16, and 0.50.2's misreads inputs whose
        # last stride is not 1. Without it the library computes in float32.
        module.support_avx512bf16_for_cpu = False
    linears = {
        path: dequantize_4bit(module.weight.data, module.weight.quant_state).float() for path, module in made.items()
    }
    return Quantized(model, linears, stored_bits(4, BLOCK, scale_bits=32), seconds, settings)
