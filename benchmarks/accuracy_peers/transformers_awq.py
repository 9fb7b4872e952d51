"""Transformers' own AWQ path."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText, AwqConfig

from accuracy_peers import Job, Quantized, Unavailable
from accuracy_peers.tensors import Inputs


def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    config = AwqConfig(bits=job.bits, group_size=job.group_size)
    try:
        AutoModelForImageTextToText.from_pretrained(job.model, quantization_config=config, device_map="cpu")
    except ValueError as error:
        raise Unavailable("it loads AWQ models that other libraries quantized, and makes none itself") from error
    raise Unavailable("it loads AWQ models that other libraries quantized, and did not refuse this one")
