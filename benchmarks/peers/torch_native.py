"""torch itself: dense bfloat16 and float32 products, and its packed 4- and 8-bit weights (16-bit activations)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import Candidate, Problem


def candidates(problem: Problem, threads: int) -> Iterator[Candidate]:
    torch.set_num_threads(threads)
    yield Dense(problem, torch.bfloat16)
    yield Dense(problem, torch.float32)
    if problem.bits == 4:
        yield Int4Pack(problem)
    if problem.bits == 8:
        yield Int8Pack(problem)


class Torch(Candidate):
    weights: list[tuple[Tensor, ...]]

    def _copy(self, problem: Problem, tensors: tuple[Tensor, ...]) -> None:
        self.weight_bytes = sum(t.nbytes for t in tensors)
        self.copies = problem.copies(self.weight_bytes)
        self.weights = [tensors] + [tuple(t.clone() for t in tensors) for _ in range(self.copies - 1)]

    def prepare(self, x: Tensor) -> None:
        self.x = x

    def output(self) -> Tensor:
        return self.y


class Dense(Torch):
    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.activations = "bf16" if dtype == torch.bfloat16 else "fp32"
        self.name = f"torch {self.activations} F.linear"
        self._copy(problem, (problem.weight.to(dtype),))

    def prepare(self, x: Tensor) -> None:
        self.x = x.to(self.weights[0][0].dtype)

    def run(self, copy: int) -> None:
        self.y = linear(self.x, self.weights[copy][0])

    def weight(self) -> Tensor:
        return self.weights[0][0]


class Int4Pack(Torch):
    name, activations = "torch _weight_int4pack_mm_for_cpu", "a16"

    def __init__(self, problem: Problem) -> None:
        self.group_size = problem.group_size
        # The operator's weight is (code - 8) * scale + offset.
        offset = (8 - problem.zero.float()) * problem.scale.float()
        scale_and_offset = torch.stack([problem.scale.float(), offset], -1).transpose(0, 1).contiguous().bfloat16()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(problem.codes.int(), 1)
        self._copy(problem, (packed, scale_and_offset))
        groups = problem.codes.view(problem.n, -1, problem.group_size).float() - 8
        scale, offset = (t.transpose(0, 1).unsqueeze(-1).float() for t in scale_and_offset.unbind(-1))
        self._weight = (groups * scale + offset).view(problem.n, problem.k)

    def run(self, copy: int) -> None:
        packed, scale_and_offset = self.weights[copy]
        self.y = torch.ops.aten._weight_int4pack_mm_for_cpu(self.x, packed, self.group_size, scale_and_offset)

    def weight(self) -> Tensor:
        return self._weight


class Int8Pack(Torch):
    """Symmetric, one scale per row: the operator has no groups."""

    name, activations = "torch _weight_int8pack_mm", "a16"

    def __init__(self, problem: Problem) -> None:
        codes = (problem.codes.short() - 128).to(torch.int8)
        self._copy(problem, (codes, problem.scale[:, 0].contiguous()))

    def run(self, copy: int) -> None:
        self.y = torch.ops.aten._weight_int8pack_mm(self.x, *self.weights[copy])

    def weight(self) -> Tensor:
        codes, scale = self.weights[0]
        return codes.float() * scale.float().unsqueeze(1)
