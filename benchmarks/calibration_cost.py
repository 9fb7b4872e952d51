"""
What `recipe="default"` costs at the widths of a 7 B model: seconds and memory of each step of GPTQ.

    python benchmarks/calibration_cost.py --widths 3584 --rows 256 --tokens 4096

The steps' arithmetic is known, so a share of the rows and tokens is measured and the rate reported; a whole block and a
whole model follow from the rates. One JSON line per step, then the sums for Qwen2.5-VL-7B (28 blocks; q, k, v, o: 3584
in; gate, up: 3584 → 18944; down: 18944 → 3584) on standard error. Random weights and inputs; a GPU is used if there is
one. The forward passes of the block come on top.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from ledger import provenance

from transformers_qaig.kernels import extension
from transformers_qaig.rounding.clipping import FACTORS, diagonal_blocks, search_clipping
from transformers_qaig.rounding.gptq import gptq_on_best_grid
from transformers_qaig.rounding.hessian import Hessian, second_moment
from transformers_qaig.rounding.quant_grid import minmax_grid, minmax_grids
from transformers_qaig.rounding.scale_refit import refit_scales

GROUPS = [(3584, 3584 + 2 * 512), (3584, 3584), (3584, 2 * 18944), (18944, 3584)]
"""Input width and all output channels of what reads one tensor: q, k, v; o; gate, up; down."""
BLOCKS = 28
TIMES = {"moments": 1, "factor": 2, "gptq": 2, "scales": 2}
"""How often a step is taken: codes are made again once the samples held back have judged them."""


def flops(step: str, width: int, rows: int, tokens: int) -> float:
    """Multiplications and additions of a step, the leading term."""
    return {
        "moments": 2.0 * 2 * tokens * width**2,  # of the inputs, and with the drift
        "factor": 2.0 * width**3 / 3 * 2,
        "gptq": 1.0 * (len(FACTORS) + 1) * rows * width**2,  # half a product for each grid
        "scales": 2.0 * 4 * rows * width**2,
    }[step]


def timed(device: torch.device, function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a GPU's time, or of the process's on the CPU: the machine may be shared."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[3584])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=4096, help="measured")
    parser.add_argument("--all-tokens", type=int, default=128 * 1024, help="of the calibration set, extrapolated to")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments = {"bits": 3, "group_size": 128, "sym": False, "storage_dtype": torch.bfloat16, "include_zero": True}

    print(json.dumps(provenance()), flush=True)
    rates: dict[str, float] = {}
    for width in options.widths:
        x = torch.randn(1, options.tokens, width, device=device)
        weight = torch.randn(options.rows, width, device=device)
        inputs = [(x, torch.ones(1, options.tokens, device=device))]
        seconds = {}
        seconds["moments"], moment = timed(device, lambda inputs=inputs: second_moment(inputs * 2))
        seconds["factor"], hessian = timed(device, lambda moment=moment: Hessian.of(moment))
        blocks = diagonal_blocks(moment, 128)
        clipping = search_clipping(weight, blocks, **arguments)
        grids = [minmax_grid(weight, shrink=clipping.shrink, gain=clipping.gain, **arguments)]
        grids += minmax_grids(weight, FACTORS, **arguments)
        seconds["gptq"], rounding = timed(device, lambda w=weight, c=hessian, g=grids: gptq_on_best_grid(w, c, g))
        seconds["scales"], _ = timed(
            device, lambda w=weight, c=hessian, r=rounding: refit_scales(w, c, r, torch.bfloat16)
        )
        for step, value in seconds.items():
            rates[step] = flops(step, width, options.rows, options.tokens) / value
            row = {
                "step": step,
                "width": width,
                "rows": options.rows,
                "tokens": options.tokens,
                "seconds": value,
                "gflops": rates[step] / 1e9,
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "device": device.type,
                "threads": torch.get_num_threads(),
                "cpu_isa": extension.cpu_isa(),
            }
            print(json.dumps(row), flush=True)
    work = {
        step: TIMES[step] * sum(flops(step, width, rows, options.all_tokens) for width, rows in GROUPS)
        for step in rates
    }
    whole = {step: work[step] / rate for step, rate in rates.items()}
    for step, value in whole.items():
        print(f"{step}: {work[step] / 1e12:.1f} TFLOP a block, {value:.0f} s a block here", file=sys.stderr)
    print(
        f"{sum(work.values()) * BLOCKS / 1e15:.2f} PFLOP for {BLOCKS} blocks and {options.all_tokens:,} tokens: "
        f"{sum(whole.values()) * BLOCKS / 3600:.1f} h here, "
        f"{sum(work.values()) * BLOCKS / 20e12 / 60:.1f} min at 20 TFLOP/s in fp32",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
