"""Runs `--dry-run`: says what quantizing a model would take, from its config alone. No weight is read or downloaded."""

from __future__ import annotations

import argparse
import copy
import time

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from ..config import QAIGConfig
from ..plan.allocate import fused_sets, only_choice, reachable
from ..plan.build import budget_in_bits, list_schemes
from ..plan.cost_estimate import CostEstimate, estimate_costs
from ..utils.memory import free_memory, process_memory
from ..utils.printable import say
from ..utils.readable import readable_size, readable_time
from .arguments import UsageError, loading

TOKENS = 1024
"""Of a sample, where `--max-length` does not say it."""
PROBE = 1024
"""Rows and columns of the product by which this machine's speed is measured."""
READING = 1e9
"""Bytes a second that are assumed for reading and writing files."""


def run(options: argparse.Namespace, config: QAIGConfig) -> None:
    """Prints the estimate.

    Args:
        options: of `plan` or `quantize`.
        config: of the run.

    Raises:
        UsageError: the model is quantized already, or of no class that can be quantized; or there is no such device.
        ValueError, OSError: what reading its config or making the plan raises.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device(config.calibration.device or accelerator or "cpu")
    if device.type not in ("cpu", accelerator and accelerator.type):
        raise UsageError(f"--device {device}: torch sees no such device here. Leave it out, or install torch for it.")
    tokens = options.max_length or TOKENS
    estimate = estimate_for(meta_model(options), config, tokens)
    say(f"{table(estimate, device)} Samples: {config.num_samples} of {tokens:,} tokens; --max-length changes that.")


def meta_model(options: argparse.Namespace) -> PreTrainedModel:
    """Returns MODEL on the meta device. It may be a Hub id, a folder, or a config.json."""
    config = AutoConfig.from_pretrained(options.model, **loading(options))
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(f"{options.model} is quantized already: give the model in full precision.")
    return model_of(config, options.trust_remote_code)


def model_of(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Returns a model on the meta device, in the dtype that its config names, or bfloat16."""
    dtype = config.dtype or torch.bfloat16
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model


def estimate_for(model: PreTrainedModel, config: QAIGConfig, tokens: int) -> CostEstimate:
    """Plans and estimates. Under a budget in bits the plan takes all of it.

    Args:
        model: on the meta device.
        config: of the run.
        tokens: of a sample.
    """
    config = config.with_default_budget()
    options, coverage = list_schemes(model, config)
    coverage.check_minimum(config.calibration.min_coverage)
    if config.budget is None:
        coverage.stored_bits = sum(choices[0].size for choices in options.values())
    else:
        fused = fused_sets(options) if config.budget.fuse else []
        limits = reachable(options, fused)
        limit = budget_in_bits(config, options, coverage, limits)
        coverage.stored_bits = min(limit, limits[1])
        if only_choice(options, limit, fused) is not None:  # then no cost is measured
            config = copy.deepcopy(config)
            config.budget = None
    return estimate_costs(model, config, coverage, tokens)


def table(estimate: CostEstimate, device: torch.device) -> str:
    """Returns the text: sizes, then time by part."""
    on_cpu = device.type == "cpu"
    memory = estimate.memory + estimate.device_memory * on_cpu
    rows = [
        ("checkpoint to read", readable_size(8 * estimate.checkpoint)),
        ("result", readable_size(8 * estimate.result)),
        ("memory", f"{readable_size(8 * memory)} (free here: {readable_size(8 * free_memory(torch.device('cpu')))})"),
    ]
    if not on_cpu:
        free = readable_size(8 * free_memory(device))
        rows.append((f"memory of {device}", f"{readable_size(8 * estimate.device_memory)} (free here: {free})"))
    rows.append(("disk, beside the checkpoint", readable_size(8 * estimate.disk)))
    rate = measured_rate(device)
    seconds = {"reading": estimate.checkpoint / READING}
    seconds |= {part: flop / rate for part, flop in estimate.flop.items()}
    seconds["saving"] = estimate.result / READING
    rows += [(f"time, {part}", readable_time(value)) for part, value in seconds.items()]
    rows.append(("time in all", readable_time(sum(seconds.values()))))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines.append(
        f"Estimated from shapes. Time is arithmetic at {rate / 1e9:,.0f} GFLOP/s, which a float32 product reached on "
        f"{device} just now. Files: {READING / 1e9:.0f} GB/s."
    )
    held = readable_size(8 * process_memory())
    lines.append(f"Not in the memory above: Python, torch and libraries, which hold {held} in this process now.")
    return "\n".join(lines)


def measured_rate(device: torch.device) -> float:
    """Measures multiplications and additions a second of a float32 product on the device."""
    x = torch.ones(PROBE, PROBE, device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        (x @ x)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2.0 * PROBE**3 / min(seconds)
