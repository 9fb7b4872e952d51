"""Layers of one input, of different widths, for `gpu_gemm.py`: one launch for all of them against one for each."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from transformers_qaig.nn import QAIGLinear

from . import Candidate, OnDevice, Problem, Unavailable
from .gpu_peers import Dense


@dataclasses.dataclass(frozen=True)
class Problems:
    """y_i = x W_iᵀ for layers of one input: side by side, one product with `[n, k]`."""

    parts: tuple[Problem, ...]

    @classmethod
    def parse(cls, text: str, group_size: int, stream_bytes: int) -> Problems:
        """`"3584:3584@4,512@3"`: K, then N and bits of each layer."""
        k, layers = text.split(":")
        sizes = [map(int, layer.split("@")) for layer in layers.split(",")]
        return cls(tuple(Problem(n, int(k), bits, group_size, stream_bytes) for n, bits in sizes))

    @property
    def n(self) -> int:
        return sum(part.n for part in self.parts)

    @property
    def k(self) -> int:
        return self.parts[0].k

    @property
    def bits(self) -> str:
        return ", ".join(str(part.bits) for part in self.parts)

    @property
    def group_size(self) -> int:
        return self.parts[0].group_size

    @functools.cached_property
    def weight(self) -> Tensor:
        return torch.cat([part.weight for part in self.parts])

    def copies(self, weight_bytes: int) -> int:
        return self.parts[0].copies(weight_bytes)


def candidates(problems: Problems, device: torch.device) -> Iterator[Candidate | Unavailable]:
    layers = [
        QAIGLinear.from_codes(p.codes, p.scale, p.zero, bits=p.bits, group_size=p.group_size).to(device)
        for p in problems.parts
    ]
    prepared = [layer.to_kernel_layout() for layer in layers]
    weight_bytes = sum(t.nbytes for layer in layers for n, t in layer.named_parameters() if n != "weight_shape")
    sets = [layers] + [copy.deepcopy(layers) for _ in range(problems.copies(weight_bytes) - 1)]
    name = "qaig" if all(prepared) else "qaig reference"
    for cls in (Together, OneByOne):
        yield cls(f"{name} {cls.suffix}", problems, sets, weight_bytes, device)
    yield Dense(problems, device)  # type: ignore[arg-type]


class OneByOne(OnDevice):
    suffix = "one by one"

    def __init__(
        self, name: str, problems: Problems, sets: list[list[QAIGLinear]], weight_bytes: int, device: torch.device
    ) -> None:
        super().__init__(device)
        self.name, self.problems, self.sets = name, problems, sets
        self.weight_bytes, self.copies = weight_bytes, len(sets)

    def run(self, copy: int) -> None:
        self.ys = [layer(self.x) for layer in self.sets[copy]]

    def output(self) -> Tensor:
        return torch.cat(self.ys, 1)

    def weight(self) -> Tensor:
        return self.problems.weight


class Together(OneByOne):
    suffix = "together"

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.arguments = [
            (
                [layer.weight_packed for layer in layers],
                [layer.weight_scale for layer in layers],
                [layer.weight_zero_point for layer in layers],
                [None] * len(layers),
                [0] * len(layers),
                [0] * len(layers),
                [layer.out_features for layer in layers],
                [layer.bits for layer in layers],
                [layer.group_size for layer in layers],
                16,
                layers[0].layout,
            )
            for layers in self.sets
        ]

    def run(self, copy: int) -> None:
        self.ys = torch.ops.qaig.linear_many(self.x, *self.arguments[copy])
