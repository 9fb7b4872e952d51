"""optimum-quanto: min/max grids per group; 8-bit activations have one scale per tensor, from the samples."""

from __future__ import annotations

import time

import torch
from optimum.quanto import Calibration, QLinear, freeze, qint2, qint4, qint8
from optimum.quanto import quantize as quantize_in_place

from accuracy_peers import Job, Quantized, stored_bits
from accuracy_peers.common import linears_of, load
from accuracy_peers.tensors import Inputs


@torch.no_grad()
def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    model = load(job.model, torch.float32)
    activations = qint8 if job.activation_bits == 8 else None
    start = time.perf_counter()
    quantize_in_place(
        model, weights={2: qint2, 4: qint4}[job.bits], activations=activations, include=list(linears_of(model))
    )
    made = linears_of(model, QLinear)
    for linear in made.values():
        linear.weight_group_size = job.group_size  # the library's own choice is the largest divisor up to 128
    if activations is not None:
        with Calibration():
            for sample in samples:
                model(**sample, use_cache=False)
    freeze(model)
    seconds = time.perf_counter() - start
    linears = {path: linear.weight.dequantize() for path, linear in made.items()}
    settings = {"weights": f"qint{job.bits}", "activations": activations and "qint8", "optimizer": "the default, max"}
    return Quantized(model, linears, stored_bits(job.bits, job.group_size, zero_bits=16), seconds, settings)
