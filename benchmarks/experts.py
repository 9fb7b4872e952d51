"""
A stack of packed experts on the CPU against Transformers' in bfloat16, and against our own linears.

    python benchmarks/experts.py --sizes 2048x768 --threads 2 > rows.jsonl

One JSON line per cell and candidate on standard output. Sizes are hidden x intermediate. Each call routes its tokens to
other experts, drawn at random, so that weights are streamed. The candidates of a cell take turns in short bursts, and
ratios are medians of the ratios within a round; where it is permitted, a burst runs in real time.

| candidate      | computes                                                                              |
| -------------- | ------------------------------------------------------------------------------------- |
| `grouped_mm`   | the model's own experts in bfloat16, by Transformers' `grouped_mm`                     |
| `eager`        | the same, by the class's own loop over experts                                         |
| `qaig`         | our packed experts: one operator call a projection                                     |
| `qaig loop`    | our packed linears, one for each projection of each expert, one after the other        |
| `qaig product` | the operator calls of `qaig` alone                                                     |
| `qaig linear`  | three packed linears with as many bytes as the chosen experts of one token, one row    |
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from ledger import provenance
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
from worker import realtime

from transformers_qaig.kernels import extension
from transformers_qaig.nn import QAIGLinear
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig.nn.experts_module import LinearExperts

BURST_SECONDS, MINIMUM_CALLS, GROUP_SIZE, STREAM_BYTES = 0.12, 5, 128, 96 << 20
ROUTINGS = 24
"""Draws of experts that calls use in turn."""


@dataclass
class Candidate:
    """One way to compute a cell; `run(i)` makes call i, with routing i."""

    name: str
    run: Callable[[int], Tensor]
    weight_bytes: int
    bursts: list[list[float]] = field(default_factory=list)
    calls: int = 0
    is_realtime: bool = True

    def burst(self) -> None:
        """Calls for a while, after one call that warms up."""
        times: list[float] = []
        with realtime() as granted:
            stop = time.perf_counter() + BURST_SECONDS
            self.run(self.calls)
            while not times or time.perf_counter() < stop:
                self.calls += 1
                start = time.perf_counter()
                self.run(self.calls)
                times.append(time.perf_counter() - start)
        self.bursts.append(times)
        self.is_realtime &= granted

    @property
    def times(self) -> list[float]:
        return [seconds for burst in self.bursts for seconds in burst]

    @property
    def medians(self) -> list[float]:
        return [statistics.median(burst) for burst in self.bursts]


def main() -> None:
    """Measures every cell, and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2048x768", "4096x1408"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 128, 1024])
    parser.add_argument("--bits", type=int, nargs="+", default=[4], choices=[2, 3, 4, 8])
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--routed", type=int, default=8, help="experts of a token")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="of measuring per candidate and cell")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    print(json.dumps(provenance()), flush=True)
    for size, bits in itertools.product(options.sizes, options.bits):
        hidden, intermediate = map(int, size.split("x"))
        stacks = Stacks(hidden, intermediate, options.experts, options.routed, bits)
        for tokens in options.tokens:
            cell = {"hidden": hidden, "intermediate": intermediate, "experts": options.experts}
            cell |= {"routed": options.routed, "threads": options.threads, "bits": bits, "tokens": tokens}
            cell |= {"cpu_isa": extension.cpu_isa()}
            for row in measured(stacks.candidates(tokens), options.seconds):
                print(json.dumps(cell | row), flush=True)
        del stacks
        gc.collect()


class Stacks:
    """The same experts in bfloat16, packed as a stack, and as linears."""

    def __init__(self, hidden: int, intermediate: int, experts: int, routed: int, bits: int) -> None:
        self.routed, self.bits = routed, bits
        config = Qwen3MoeConfig(
            hidden_size=hidden, moe_intermediate_size=intermediate, num_experts=experts, num_experts_per_tok=routed
        )
        with torch.device("meta"):
            self.dense = Qwen3MoeExperts(config).bfloat16()
        self.dense.to_empty(device="cpu")
        self.linears = LinearExperts.of(self.dense)
        layout = self.linears.stack
        for projection in layout.projections:
            draws = [random_linear(*layout.shape(projection), bits, seed) for seed in range(3)]
            weights = [layer.dequantize(torch.bfloat16) for layer in draws]
            for expert in range(experts):  # few that differ: drawing and packing takes long
                layer = draws[expert % len(draws)]
                layout.weight(self.dense, expert, projection).copy_(weights[expert % len(draws)])
                self.linears.set_submodule(f"{expert}.{projection}", copy.deepcopy(layer))
        self.packed = QAIGExperts.from_linears(self.linears)
        if not self.packed.to_kernel_layout():
            raise SystemExit("no compiled kernels for the packed experts: see `transformers-qaig env`")
        for module in self.linears.modules():
            if isinstance(module, QAIGLinear):
                module.to_kernel_layout()
        self.bytes_of_expert = sum(parameter.nbytes for parameter in self.packed.parameters()) // experts
        wide = [(hidden, routed * intermediate)] * 2 + [(intermediate, routed * hidden)]
        self.wide = [random_linear(rows, columns, bits, 0) for columns, rows in wide]
        copies = -(-STREAM_BYTES // (routed * self.bytes_of_expert))
        self.wide_copies = [[copy.deepcopy(layer) for layer in self.wide] for _ in range(copies)]
        for layer in itertools.chain(*self.wide_copies):
            layer.to_kernel_layout()

    def candidates(self, tokens: int) -> list[Candidate]:
        """Makes the candidates for a number of tokens, and checks that they agree."""
        generator = torch.Generator().manual_seed(tokens)
        hidden, count = self.linears.stack.hidden_size, self.linears.stack.num_experts
        x = torch.randn(tokens, hidden, generator=generator).bfloat16()
        routings = [torch.rand(tokens, count, generator=generator).topk(self.routed) for _ in range(ROUTINGS)]
        routings = [(weights / weights.sum(-1, keepdim=True), index) for weights, index in routings]
        used = int(statistics.mean(len(index.unique()) for _, index in routings))

        def forward(module: nn.Module, implementation: str | None = None) -> Callable[[int], Tensor]:
            def run(call: int) -> Tensor:
                if implementation is not None:
                    self.dense.config._experts_implementation = implementation
                weights, index = routings[call % ROUTINGS]
                return module(x, index, weights.bfloat16())

            return run

        dense_bytes = used * sum(parameter[0].nbytes for parameter in self.dense.parameters())
        packed_bytes = used * self.bytes_of_expert
        found = [
            Candidate("grouped_mm", forward(self.dense, "grouped_mm"), dense_bytes),
            Candidate("eager", forward(self.dense, "eager"), dense_bytes),
            Candidate("qaig", forward(self.packed), packed_bytes),
            Candidate("qaig loop", forward(self.linears), packed_bytes),
            Candidate("qaig product", self.products(x, routings), packed_bytes),
        ]
        expected = found[0].run(0).float()
        for candidate in found[1:4]:
            error = float((candidate.run(0).float() - expected).norm() / expected.norm())
            if error > 0.02:
                raise SystemExit(f"{candidate.name}: wrong result, relative error {error:.3g}")
        if tokens == 1:
            found.append(Candidate("qaig linear", self.one_linear(x), packed_bytes))
        return found

    def products(self, x: Tensor, routings: list[tuple[Tensor, Tensor]]) -> Callable[[int], Tensor]:
        """Makes calls of the operator alone, on rows that are sorted beforehand."""
        experts = torch.arange(self.linears.stack.num_experts + 1)
        inputs = []
        for _, index in routings:
            ids, order = index.reshape(-1).sort(stable=True)
            rows = x[order // self.routed]
            hidden = torch.randn(len(rows), self.linears.stack.intermediate_size).bfloat16()
            inputs.append((rows, hidden, torch.searchsorted(ids, experts, out_int32=True)))

        def run(call: int) -> Tensor:
            rows, hidden, offsets = inputs[call % ROUTINGS]
            self.packed.project(rows, offsets, "gate_proj")
            self.packed.project(rows, offsets, "up_proj")
            return self.packed.project(hidden, offsets, "down_proj")

        return run

    def one_linear(self, x: Tensor) -> Callable[[int], Tensor]:
        """Makes calls of three linears that have the bytes of the chosen experts."""
        hidden = torch.randn(1, self.linears.stack.intermediate_size).bfloat16()

        def run(call: int) -> Tensor:
            gate, up, down = self.wide_copies[call % len(self.wide_copies)]
            gate(x)
            up(x)
            return down(hidden)

        return run


def random_linear(rows: int, columns: int, bits: int, seed: int) -> QAIGLinear:
    """Makes a packed linear in the checkpoint layout, for outputs of about unit variance."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(rows, columns // GROUP_SIZE, generator=generator) + 0.5) / (0.3 * (1 << bits) * columns**0.5)
    return QAIGLinear.from_codes(codes, scale.bfloat16(), None, bits=bits, group_size=GROUP_SIZE)


def measured(candidates: list[Candidate], seconds: float) -> Iterator[dict[str, Any]]:
    """Lets the candidates take turns, and yields a row for each."""
    while any(sum(c.times) < seconds or len(c.times) < MINIMUM_CALLS for c in candidates):
        for candidate in candidates:
            candidate.burst()
    by_name = {candidate.name: candidate for candidate in candidates}
    for candidate in candidates:
        median = statistics.median(candidate.times)
        row: dict[str, Any] = {
            "op": candidate.name,
            "us": median * 1e6,
            "us_min": min(candidate.times) * 1e6,
            "calls": len(candidate.times),
            "realtime": candidate.is_realtime,
            "gb_per_s": candidate.weight_bytes / median / 1e9,
        }
        for other in ("grouped_mm", "eager", "qaig loop"):
            if candidate.name == "qaig":
                row[f"times {other}"] = ratio(by_name[other], candidate)
        if candidate.name == "qaig":
            row["times bf16"] = min(row["times grouped_mm"], row["times eager"])
        if candidate.name in ("qaig", "qaig product") and "qaig linear" in by_name:
            row["times one linear"] = ratio(by_name["qaig linear"], candidate)
        yield row


def ratio(other: Candidate, candidate: Candidate) -> float:
    """Returns how many times as fast as another a candidate is: the median over rounds."""
    return statistics.median(a / b for a, b in zip(other.medians, candidate.medians, strict=True))


if __name__ == "__main__":
    main()
