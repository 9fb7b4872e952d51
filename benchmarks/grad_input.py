"""
The gradient of a linear layer's input on the CPU: packed weights, float32 and bitsandbytes' nf4 against bfloat16.

    python benchmarks/grad_input.py --threads 2 > rows.jsonl

A call computes dX = dY W, as the backward pass of a layer of K inputs and N outputs does: dY is `[M, N]`, W `[N, K]`.
Candidates take turns, each with enough equal weights, used in turn, to exceed the last-level cache. A ratio is
the median over the rounds of bfloat16's time over the candidate's. One JSON line per cell on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from generate import nf4, packed
from ledger import PACKAGES, provenance
from torch import Tensor, nn

from transformers_qaig.kernels import extension

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHAPES = ("1024x1024", "4096x4096", "4096x11008")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="KxN")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of one thread, on a busy machine")
    parser.add_argument("--stream-mib", type=int, default=64, help="weights of a candidate, at least")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu needs --threads 1: it adds up the time of all threads")
    torch.set_num_threads(options.threads)
    print(json.dumps(provenance((*PACKAGES, "bitsandbytes"))), flush=True)
    for shape in options.shapes:
        in_features, out_features = map(int, shape.split("x"))
        for row in cells(in_features, out_features, options):
            print(json.dumps(row), flush=True)


def cells(in_features: int, out_features: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    linear = nn.Linear(in_features, out_features, bias=False, dtype=torch.bfloat16)
    # float32, whose gradients are float32, is the peer where the processor multiplies no half precision.
    layers: dict[str, nn.Module] = {"bf16": linear, "fp32": copy.deepcopy(linear).float()}
    for bits in options.bits:
        layers[f"w{bits}"] = layer = packed(linear, f"w{bits}a16", 128)
        layer.to_kernel_layout()
    with contextlib.suppress(ImportError):
        layers["bitsandbytes-nf4"] = nf4(in_features, out_features, bias=False)
    for tokens in options.tokens:
        grad = torch.randn(tokens, out_features)
        calls = {name: backward(layer, grad, options.stream_mib << 20) for name, layer in layers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.rounds):
            for name, call in calls.items():
                seconds[name].append(timed(call, CLOCKS[options.clock]))
        for name, measured in seconds.items():
            ratios = [base / own for base, own in zip(seconds["bf16"], measured, strict=True)]
            yield {
                "k": in_features,
                "n": out_features,
                "m": tokens,
                "threads": options.threads,
                "clock": options.clock,
                "op": name,
                "ms": 1e3 * statistics.median(measured),
                "speed_over_bf16": statistics.median(ratios),
                "cpu_isa": extension.cpu_isa(),
            }


def backward(layer: Any, grad: Tensor, stream_bytes: int) -> Callable[[], object]:
    """Returns what computes dX once, by copies of the layer in turn."""
    size = sum(tensor.nbytes for tensor in layer.state_dict().values())
    graphs = []
    grad = grad.to(torch.float32 if _is_float32(layer) else torch.bfloat16)
    for _ in range(1 + stream_bytes // size):  # the forward pass is run once, and only its backward pass is timed
        x = torch.zeros(len(grad), layer.in_features, dtype=grad.dtype, requires_grad=True)
        graphs.append((copy.deepcopy(layer)(x), x))
    turn = itertools.cycle(graphs)

    def call() -> object:
        y, x = next(turn)
        return torch.autograd.grad(y, x, grad, retain_graph=True)

    return call


def _is_float32(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32


def timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds a call takes, over as many as fill 50 ms."""
    call()
    count, start = 0, clock()
    while clock() - start < 0.05 or count == 0:
        call()
        count += 1
    return (clock() - start) / count


if __name__ == "__main__":
    main()
