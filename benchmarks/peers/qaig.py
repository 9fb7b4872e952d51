"""Ours: `QAIGLinear`, with 16-bit activations and with activations rounded to 8 bits per token."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from transformers_qaig.kernels import extension
from transformers_qaig.nn import QAIGLinear

from . import Candidate, Problem, Unavailable


def candidates(problem: Problem, threads: int) -> Iterator[Candidate | Unavailable]:
    torch.set_num_threads(threads)
    layer = QAIGLinear.from_codes(
        problem.codes, problem.scale, problem.zero, bits=problem.bits, group_size=problem.group_size
    )
    layers = [layer]
    weight_bytes = sum(p.nbytes for n, p in layer.named_parameters() if n != "weight_shape")
    layers += [copy.deepcopy(layer) for _ in range(problem.copies(weight_bytes) - 1)]
    for one in layers:
        if hasattr(one, "to_kernel_layout"):
            one.to_kernel_layout()
    yield QAIG(problem, layers, weight_bytes, 16)
    layers = [copy.copy(one) for one in layers]  # the same tensors
    for one in layers:
        one.activation_bits = 8
    try:
        layers[0](torch.zeros(1, problem.k, dtype=torch.bfloat16))
    except NotImplementedError as error:
        yield Unavailable(f"qaig a8: {error}")
    else:
        yield QAIG(problem, layers, weight_bytes, 8)


class QAIG(Candidate):
    def __init__(self, problem: Problem, layers: list[QAIGLinear], weight_bytes: int, activation_bits: int) -> None:
        self.name, self.activations = "qaig", f"a{activation_bits}"
        self.tolerance = 0.01 if activation_bits == 16 else 0.05
        self.layers, self.problem, self.isa = layers, problem, extension.cpu_isa()
        self.weight_bytes, self.copies = weight_bytes, len(layers)

    def prepare(self, x: Tensor) -> None:
        self.x = x

    def run(self, copy: int) -> None:
        self.y = self.layers[copy](self.x)

    def output(self) -> Tensor:
        return self.y

    def weight(self) -> Tensor:
        return self.problem.weight
