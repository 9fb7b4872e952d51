"""HQQ: half-quadratic search of every group's zero point; reads no data. The library's default settings."""

from __future__ import annotations

import time

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

from accuracy_peers import Job, Quantized, stored_bits
from accuracy_peers.common import linears_of, load
from accuracy_peers.tensors import Inputs


def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    config = BaseQuantizeConfig(nbits=job.bits, group_size=job.group_size)
    model = load(job.model, torch.float32)
    start = time.perf_counter()
    made = {
        path: HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu", del_orig=False)
        for path, linear in linears_of(model).items()
    }
    seconds = time.perf_counter() - start
    for path, linear in made.items():
        model.set_submodule(path, linear)
    linears = {path: linear.dequantize() for path, linear in made.items()}
    return Quantized(model, linears, stored_bits(job.bits, job.group_size, zero_bits=16), seconds, config)
