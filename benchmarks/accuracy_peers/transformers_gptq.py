"""Transformers' own GPTQ path: optimum and GPTQModel."""

from __future__ import annotations

import importlib.util
import time

from transformers import AutoModelForImageTextToText, AutoTokenizer, GPTQConfig

from accuracy_peers import Job, Quantized, Unavailable, stored_bits
from accuracy_peers.common import linears_of
from accuracy_peers.tensors import Inputs


def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    if importlib.util.find_spec("gptqmodel") is None:  # without it optimum fails on a name it could not import
        raise Unavailable("optimum quantizes with GPTQModel, whose release 7.7.0 does not install beside torch 2.13.0")
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
