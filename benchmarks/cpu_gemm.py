"""
Our CPU product against other libraries' and against the machine's limits, taking turns in one run.

    python benchmarks/cpu_gemm.py --shapes 4096x4096 --threads 2 > rows.jsonl
    python benchmarks/cpu_gemm.py --table rows.jsonl

One JSON line per cell on standard output. Shapes are KxN. Weights are streamed: every candidate has copies of its
weight, more than the last-level cache in total, used in turn. The candidates of a cell, and the machine's limits, take
turns in short bursts, so that a drift of the machine meets all of them; where it is permitted, a burst runs in real
time, undisturbed by other processes. Peers live in processes of their own; see README.md for how to install them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from gemm_table import markdown
from ledger import provenance
from peers import PEERS, Problem
from worker import Worker

from transformers_qaig.kernels import extension

PACKAGES = ("transformers-qaig", "torch", "onnxruntime", "openvino", "bitsandbytes")
MINIMUM_CALLS = 5
BURST_SECONDS = 0.12
PEAKS_OF = {
    "a8": ("amx-int8", "vnni", "fma"),
    "a16": ("amx-bf16", "bf16", "fma"),
    "bf16": ("amx-bf16", "bf16", "fma"),
    "fp32": ("fma",),
}
"""The arithmetic that a product could use, by its activations; the fastest first."""


@dataclasses.dataclass
class Runner:
    """One candidate of a cell: who computes it, and the seconds of its calls so far, by burst."""

    worker: Worker
    description: dict[str, Any]
    bursts: list[list[float]] = dataclasses.field(default_factory=list)
    realtime: bool = True
    error: float = 0.0

    @property
    def name(self) -> str:
        return self.description["name"]

    @property
    def activations(self) -> str:
        return self.description["activations"]

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("qaig")

    def operations(self, m: int, k: int) -> int:
        """Multiplications and additions of one call."""
        return self.description["operations"] or 2 * m * k * self.description["rows"]

    @property
    def times(self) -> list[float]:
        return [seconds for burst in self.bursts for seconds in burst]

    @property
    def medians(self) -> list[float]:
        """Of each burst, in seconds."""
        return [statistics.median(burst) for burst in self.bursts]

    def done(self, seconds: float) -> bool:
        return len(self.times) >= MINIMUM_CALLS and sum(self.times) >= seconds

    def burst(self, seconds: float) -> None:
        times, granted = self.worker.ask("burst", self.description["index"], seconds, len(self.times))
        self.bursts.append(times)
        self.realtime &= granted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "4096x11008", "3584x18944", "2048x2048"])
    parser.add_argument("--m", type=int, nargs="+", default=[1, 4, 16, 128, 1024], help="tokens")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8], choices=[2, 3, 4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--isa", nargs="+", default=[], help="other instruction sets for ours: avxvnni, avx2, portable")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring per candidate and cell")
    parser.add_argument("--stream-mib", type=int, default=96, help="weights of a candidate, in all")
    parser.add_argument("--skip", type=Path, nargs="+", default=[], help="do not repeat the cells of these rows")
    parser.add_argument("--table", type=Path, nargs="+", help="print the Markdown of these rows and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(markdown(read_rows(options.table)))
        return
    done = {cell_of(row) for row in read_rows(options.skip) if "m" in row}

    rows = [machine()]
    print(json.dumps(rows[0]), flush=True)
    isa = extension.cpu_isa()
    for threads in options.threads:
        workers = start_workers(options.peers, options.isa, threads)
        for shape in options.shapes:
            k, n = map(int, shape.split("x"))
            for bits in options.bits:
                tokens = [m for m in options.m if (threads, k, n, bits, m) not in done]
                if not tokens:
                    continue
                problem = Problem(n, k, bits, options.group_size, options.stream_mib << 20)
                runners, refusals = build(workers, problem)
                for m in tokens:
                    for row in measure(runners, refusals, m, k, options.seconds):
                        row = {"bits": bits, "m": m, "n": n, "k": k, "threads": threads, "cpu_isa": isa} | row
                        rows.append(row | {"group_size": options.group_size, "processor": rows[0]["machine"]})
                        print(json.dumps(rows[-1]), flush=True)
        for worker in workers:
            worker.stop()
    print(markdown(rows), file=sys.stderr)


def read_rows(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


def cell_of(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[key] for key in ("threads", "k", "n", "bits", "m"))


def machine() -> dict[str, Any]:
    """The first row: where and with what the others were measured."""
    row = provenance(PACKAGES)
    ggml = Path(sys.prefix) / "ggml" / "version"
    if ggml.exists():
        row["versions"]["ggml"] = ggml.read_text().strip()
    return row | {"capability": torch.backends.cpu.get_cpu_capability()}


def start_workers(peers: list[str], isas: list[str], threads: int) -> list[Worker]:
    workers = [Worker("limits", threads)]
    for peer in peers:
        workers.append(Worker(peer, threads))
        if peer == "qaig":
            workers += [Worker(peer, threads, {"QAIG_CPU_ISA": isa}, f" {isa}") for isa in isas]
    return workers


def build(workers: list[Worker], problem: Problem) -> tuple[list[Runner], list[str]]:
    """The candidates for a problem, and why others are missing."""
    runners, refusals = [], []
    for worker in workers:
        try:
            answers = worker.ask("build", problem)
        except RuntimeError as error:
            refusals.append(str(error))
            continue
        for answer in answers:
            if isinstance(answer, str):
                refusals.append(answer)
            else:
                runners.append(Runner(worker, answer | {"name": answer["name"] + worker.label}))
    return runners, refusals


def measure(runners: list[Runner], refusals: list[str], m: int, k: int, seconds: float) -> list[dict[str, Any]]:
    """The rows of one cell: every candidate, then what could not run."""
    ready, refusals = [], list(refusals)
    for runner in runners:
        runner = dataclasses.replace(runner, bursts=[], realtime=True)
        try:
            runner.error = runner.worker.ask("prepare", runner.description["index"], m, k)
            ready.append(runner)
        except RuntimeError as error:
            refusals.append(str(error))
    while waiting := [runner for runner in ready if not runner.done(seconds)]:
        for runner in waiting:
            try:
                runner.burst(BURST_SECONDS)
            except RuntimeError as error:
                refusals.append(str(error))
                ready.remove(runner)
    rows = [row_of(runner, m, k) | ratios(runner, ready, m, k) for runner in ready]
    return rows + [{"op": None, "reason": reason} for reason in refusals]


def row_of(runner: Runner, m: int, k: int) -> dict[str, Any]:
    description, times = runner.description, runner.times
    median = statistics.median(times)
    return {
        "op": description["name"],
        "activations": description["activations"],
        "isa": description["isa"],
        "us": median * 1e6,
        "us_min": min(times) * 1e6,
        "calls": len(times),
        "realtime": runner.realtime,
        "weight_bytes": description["weight_bytes"],
        "gb_per_s": description["weight_bytes"] / median / 1e9,
        "gflop_per_s": runner.operations(m, k) / median / 1e9,
        "relative_error": runner.error,
    }


def ratios(runner: Runner, all_runners: list[Runner], m: int, k: int) -> dict[str, Any]:
    """A product's fractions of the limits; and ours against the best peer of its class, bf16, and our best ISA.

    Ratios are medians over rounds of the ratio within a round: the machine's limits change from second to second.
    """
    if runner.activations == "limit":
        return {}
    result: dict[str, Any] = {}
    limits = {other.name: other for other in all_runners if other.activations == "limit"}
    reads = [other for name, other in limits.items() if name.startswith("read")]
    if reads:
        rates = zip(*([other.description["weight_bytes"] / t for t in other.medians] for other in reads))
        own = [runner.description["weight_bytes"] / t for t in runner.medians]
        result["read_fraction"] = statistics.median(rate / max(read) for rate, read in zip(own, rates))
    peaks = (limits.get(f"peak: {kind}") for kind in PEAKS_OF[runner.activations])
    if peak := next(filter(None, peaks), None):
        share = runner.operations(m, k) / peak.operations(m, k)
        result["peak_fraction"] = share / paired_ratio(runner, peak)
    if not runner.is_ours:
        return result
    products = [other for other in all_runners if other.activations != "limit" and other is not runner]
    peers = [other for other in products if not other.is_ours and other.activations == runner.activations]
    if peers:
        best = min(peers, key=lambda peer: statistics.median(peer.times))
        result["best_peer"], result["ratio_to_best_peer"] = best.name, paired_ratio(best, runner)
    for other in products:
        if other.activations == "bf16":
            result["ratio_to_bf16"] = paired_ratio(other, runner)
        if other.name == "qaig" and other.activations == runner.activations:
            result["ratio_to_best_isa"] = paired_ratio(other, runner)
    return result


def paired_ratio(slow: Runner, fast: Runner) -> float:
    """How many times as long `slow` takes: the median over rounds."""
    return statistics.median(s / f for s, f in zip(slow.medians, fast.medians))


if __name__ == "__main__":
    main()
