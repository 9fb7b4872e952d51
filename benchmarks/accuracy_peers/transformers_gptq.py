"""Transformers' own GPTQ path: optimum and GPTQModel."""

from __future__ import annotations

import time

from transformers import AutoModelForImageTextToText, AutoTokenizer, GPTQConfig

from accuracy_peers import Job, Quantized, stored_bits
from accuracy_peers.common import linears_of
from accuracy_peers.tensors import Inputs


def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    config = GPTQConfig(
        bits=job.bits,
        group_size=job.group_size,
        dataset=[{**sample} for sample in samples],
        tokenizer=AutoTokenizer.from_pretrained(job.model),
    )
    start = time.perf_counter()
    model = AutoModelForImageTextToText.from_pretrained(job.model, quantization_config=config, device_map="cpu")
    seconds = time.perf_counter() - start
    linears = {path: module.dequantize_weight().T.float() for path, module in linears_of(model).items()}
    return Quantized(model, linears, stored_bits(job.bits, job.group_size), seconds, config.to_dict())
