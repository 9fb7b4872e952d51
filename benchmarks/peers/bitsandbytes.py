"""bitsandbytes nf4 (16-bit activations): its own fused CPU product for one token, dequantize + GEMM for more."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from . import Candidate, Problem


def candidates(problem: Problem, threads: int) -> Iterator[Candidate]:
    torch.set_num_threads(threads)
    if problem.bits == 4:
        yield NF4(problem)


class NF4(Candidate):
    name, activations = "bitsandbytes nf4", "a16"
    tolerance = 0.02

    def __init__(self, problem: Problem) -> None:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(problem.k, problem.n, False, torch.bfloat16, quant_type="nf4")
        layer.load_state_dict({"weight": problem.weight.bfloat16()})
        layer = layer.to("cpu").eval()
        self.weight_bytes = problem.n * problem.k // 2 + problem.n * problem.k // 64 * 4
        self.copies = problem.copies(self.weight_bytes)
        self.layers = [layer] + [copy.deepcopy(layer) for _ in range(self.copies - 1)]
        self._weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)

    def prepare(self, x: Tensor) -> None:
        self.x = x

    @torch.no_grad()
    def run(self, copy: int) -> None:
        self.y = self.layers[copy](self.x)

    def output(self) -> Tensor:
        return self.y

    def weight(self) -> Tensor:
        return self._weight
