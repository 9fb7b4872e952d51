"""
Our CUDA product against cuBLAS, other packed products and the memory's bandwidth.

    python benchmarks/gpu_gemm.py > rows.jsonl
    python benchmarks/gpu_gemm.py --table rows.jsonl
    python benchmarks/gpu_gemm.py --dry-run           # small shapes on the CPU: exercises this script, measures nothing

One JSON line per cell on standard output, tables on standard error. Shapes are KxN, those of real VLMs. Calls are
replayed from a CUDA graph, so that launches cost what they cost in a compiled model; each candidate has copies of its
weight, used in turn, of twice the L2 cache in all. `qaig` is what a layer does. `qaig gemv`, `qaig gemm_f16` and `qaig
dequantize` are its three kernels at every M. csrc/cuda/tuning.h should hold where they cross on this GPU. `qaig a8` and
its kernels (`gemm_i8` for `gemm_f16`) round activations to 8 bits. Ratios to the best peer stay within a class: 16-bit
activations, or rounded ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from ledger import provenance
from peers import Candidate, Problem, Unavailable
from peers.gpu import candidates
from peers.gpu_many import Problems
from peers.gpu_many import candidates as many_candidates

from transformers_qaig.kernels import cuda, extension
from transformers_qaig.kernels.cuda import interface

SHAPES = {
    "Qwen2.5-VL-3B gate, up": "2048x11008",
    "Qwen2.5-VL-7B q, o": "3584x3584",
    "Qwen2.5-VL-7B k, v": "3584x512",
    "Qwen2.5-VL-7B gate, up": "3584x18944",
    "Qwen2.5-VL-7B down": "18944x3584",
    "Qwen2.5-VL-32B gate, up": "5120x27648",
}
MIXED = ["3584:3584@4,512@3,512@2", "3584:18944@3,18944@4", "2048:11008@2,11008@3"]  # q, k, v; gate, up of 7B and of 3B
TOKENS = [1, 2, 4, 8, 16, 32, 48, 64, 128, 256, 512, 1024, 4096]
PACKAGES = ("transformers-qaig", "torch", "bitsandbytes", "cuda-bindings", "nvidia-cuda-nvrtc")
DRY_RUN = {"shapes": ["256x192"], "mixed": ["256:192@4,64@3"], "m": [1, 17, 70], "bits": [3, 4], "seconds": 0.02}
DRY_RUN_NOTE = "dry run: the script was exercised, and its figures mean nothing"
LEAST_US = 3.0
"""What a launch inside a graph takes at the least, for the floor that a small product is held against."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES.values()))
    parser.add_argument("--m", type=int, nargs="+", default=TOKENS, help="tokens")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8], choices=[2, 3, 4, 8])
    parser.add_argument("--mixed", nargs="*", default=MIXED, help="K:N@bits,N@bits,... of layers that read one input")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=0.05, help="of measuring per candidate and cell")
    parser.add_argument("--chosen-kernel", action="store_true", help="ours only with the kernel that it chooses")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of these rows and measure nothing")
    options = parser.parse_args()
    if options.table:
        rows = [json.loads(line) for path in options.table for line in path.read_text().splitlines() if line.strip()]
        print(markdown(rows))
        return
    if options.dry_run:
        vars(options).update(DRY_RUN, device="cpu")
    rows = []
    for row in measure(options):
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(markdown(rows), file=sys.stderr)


@torch.no_grad()
def measure(options: argparse.Namespace) -> Iterator[Row]:
    device = torch.device(options.device)
    about = machine(device)
    yield about
    stream_bytes = 2 * about["l2_bytes"]
    for shape in options.shapes:
        k, n = map(int, shape.split("x"))
        for bits in options.bits:
            problem = Problem(n, k, bits, options.group_size, stream_bytes)
            yield from cells(
                problem,
                candidates(problem, device, not options.chosen_kernel),
                options.m,
                options.seconds,
                about,
                device,
            )
    few = [m for m in options.m if m <= interface.MAX_GEMV_ROWS]
    for text in options.mixed if few else ():
        problems = Problems.parse(text, options.group_size, stream_bytes)
        yield from cells(problems, many_candidates(problems, device), few, options.seconds, about, device)


def cells(
    problem: Problem | Problems,
    found: Iterable[Candidate | Unavailable],
    tokens: list[int],
    seconds: float,
    about: Row,
    device: torch.device,
) -> Iterator[Row]:
    """The rows of one problem: what is missing, then every candidate for every number of tokens."""
    cell = {"k": problem.k, "n": problem.n, "bits": problem.bits, "group_size": problem.group_size}
    made = list(found)
    yield from (cell | {"op": None, "reason": str(one)} for one in made if isinstance(one, Unavailable))
    for m in tokens:
        x = torch.randn(m, problem.k, generator=torch.Generator().manual_seed(m)).bfloat16()
        rows = [run(one, x, seconds, device) for one in made if isinstance(one, Candidate)]
        for row in rows:
            if "us" in row:
                row |= rates(row, m, problem.n, problem.k, about["copy_gb_per_s"]) | ratios(row, rows)
            yield cell | {"m": m} | row


def machine(device: torch.device) -> Row:
    """The first row: where and with what the others were measured."""
    row = provenance(PACKAGES) | {"cuda": torch.version.cuda}
    if device.type != "cuda":
        return row | {
            "gpu": None,
            "note": DRY_RUN_NOTE,
            "l2_bytes": 1 << 16,
            "copy_gb_per_s": bandwidth(device, 1 << 20),
        }
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    cuda.load(device)
    choice = cuda.choice(capability)
    return row | {
        "machine": properties.name,
        "gpu": properties.name,
        "capability": capability,
        "kernels": choice.origin,
        "why_not_better": choice.reasons,
        "library": extension.origin(),
        "architectures": extension.cuda_architectures(),
        "l2_bytes": properties.L2_cache_size,
        "copy_gb_per_s": bandwidth(device, 1 << 30),
    }


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written per second by copying `size` bytes, in GB/s: the limit that weights are read against."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds, _ = clock(lambda copy: target.copy_(source), 1, 0.1, device)
    return 2 * size / statistics.median(seconds) / 1e9


def run(candidate: Candidate, x: torch.Tensor, seconds: float, device: torch.device) -> Row:
    """One candidate's row: checked, then timed."""
    row = {"op": candidate.name, "activations": candidate.activations, "weight_bytes": candidate.weight_bytes}
    try:
        candidate.prepare(x)
        candidate.run(0)
        error = candidate.error(x)
        if not error <= candidate.tolerance:
            return row | {"reason": f"wrong result, relative error {error:.3g}"}
        times, graph = clock(candidate.run, candidate.copies, seconds, device)
    except Exception as error:  # one candidate's failure is its row, and the others' figures are wanted all the same
        return row | {"reason": f"{type(error).__name__}: {error}"}
    return row | {"us": statistics.median(times) * 1e6, "us_min": min(times) * 1e6, "graph": graph, "error": error}


def clock(call: Callable[[int], object], copies: int, seconds: float, device: torch.device) -> tuple[list[float], bool]:
    """Seconds of a call, one figure for each replay of a graph of calls; and whether there was a graph."""
    if device.type != "cuda":
        times, stop = [], time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < stop:
            start = time.perf_counter()
            call(len(times) % copies)
            times.append(time.perf_counter() - start)
        return times, False
    calls = max(copies, 20)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        for copy in range(copies):  # loads kernels, and lets libraries choose theirs
            call(copy)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for number in range(calls):
                call(number % copies)
        replay = graph.replay
    except RuntimeError:  # not every peer can be captured
        graph = None

        def replay() -> None:
            for number in range(calls):
                call(number % copies)

    replay()
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    while len(times) < 5 or sum(times) * calls < seconds:
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / calls)
    return times, graph is not None


def rates(row: Row, m: int, n: int, k: int, copy_gb_per_s: float) -> Row:
    """What a time amounts to: against the memory, and against a floor for small products."""
    us = row["us"]
    rate = row["weight_bytes"] / us / 1e3
    result = {"gb_per_s": rate, "tflop_per_s": 2 * m * n * k / us / 1e6, "bandwidth_fraction": rate / copy_gb_per_s}
    return result | {"times_floor": us / max(row["weight_bytes"] / copy_gb_per_s / 1e3, LEAST_US)}


def ratios(row: Row, rows: list[Row]) -> Row:
    """How many times as fast as cuBLAS in bfloat16, and as the best peer whose activations are as exact as its own."""
    timed = [other for other in rows if "us" in other]
    dense = [other["us"] for other in timed if other["activations"] == "bf16"]
    result = {"speed_over_bf16": dense[0] / row["us"]} if dense else {}
    is_rounded = row["activations"] == "a8"
    peers = [o for o in timed if not o["op"].startswith("qaig") and (o["activations"] == "a8") == is_rounded]
    if row["op"].startswith("qaig") and peers:
        best = min(peers, key=lambda peer: peer["us"])
        result |= {"best_peer": best["op"], "speed_over_best_peer": best["us"] / row["us"]}
    return result


def markdown(rows: list[Row]) -> str:
    """A table of times for each shape and width, with where our kernels cross."""
    tables: dict[tuple[int, int, int | str], list[Row]] = defaultdict(list)
    for row in rows:
        if "k" in row:
            tables[row["k"], row["n"], row["bits"]].append(row)
    parts = [row["note"] for row in rows if "note" in row]
    for (k, n, bits), cells in tables.items():
        tokens = sorted({row["m"] for row in cells if "us" in row})
        figures: dict[str, dict[int, Row]] = defaultdict(dict)
        for row in cells:
            if "us" in row:
                figures[row["op"]][row["m"]] = row
        lines = ["| | " + " | ".join(f"M={m}" for m in tokens) + " |", "|---|" + "---|" * len(tokens)]
        for op, by_m in figures.items():
            lines.append(f"| {op} | " + " | ".join(_figure(by_m.get(m)) for m in tokens) + " |")
        reasons = dict.fromkeys(f"{row['op'] or 'peer'}: {row['reason']}" for row in cells if "reason" in row)
        lines += [f"\nNot measured: {reason}" for reason in reasons]
        if isinstance(bits, int):
            lines.append(f"\n{crossing(figures)}")
            lines.append(f"\nRounded to 8 bits. {crossing(figures, 'qaig a8', 'gemm_i8')}")
        parts.append(f"### K={k}, N={n}, {bits} bits\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def crossing(figures: dict[str, dict[int, Row]], name: str = "qaig", gemm: str = "gemm_f16") -> str:
    """The most tokens at which each kernel is the fastest of those measured, for csrc/cuda/tuning.h."""
    names = {kernel: f"{name} {kernel}" for kernel in ("gemv", gemm, "dequantize")}
    found = {kernel: figures[op] for kernel, op in names.items() if op in figures}
    tokens = sorted(set.intersection(*(set(by_m) for by_m in found.values()))) if len(found) > 1 else []
    if not tokens:
        return "Thresholds: not measured."
    fastest = {m: min(found, key=lambda kernel: found[kernel][m]["us"]) for m in tokens}
    most = {kernel: max((m for m in tokens if fastest[m] == kernel), default=0) for kernel in found}
    return "The fastest up to: " + ", ".join(f"{kernel} M={m}" for kernel, m in most.items()) + "."


def _figure(row: Row | None) -> str:
    """Microseconds; GB/s of weights for few tokens, TFLOP/s for many."""
    if row is None:
        return "–"
    rate = f"{row['gb_per_s']:.0f} GB/s" if row["m"] <= 16 else f"{row['tflop_per_s']:.0f} TFLOP/s"
    return f"{row['us']:.1f} µs ({rate})"


if __name__ == "__main__":
    main()
