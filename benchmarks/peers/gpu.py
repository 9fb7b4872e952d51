"""The candidates of `gpu_gemm.py`: ours with the kernel that it chooses and with each of its kernels, and the peers.

Each with 16-bit activations, or with activations rounded to 8 bits ("a8"): those are held against products of rounded
activations only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from transformers_qaig.kernels.cuda import interface
from transformers_qaig.nn import QAIGLinear

from . import Candidate, OnDevice, Problem, Unavailable
from .gpu_peers import NF4, Dense, Float8, Int8, TinyGemm

MOST_TOKENS = 1 << 14
"""A kernel that begins beyond is not measured."""


def candidates(problem: Problem, device: torch.device, each_kernel: bool = True) -> Iterator[Candidate | Unavailable]:
    """Those for a problem, each with its weights on the device; why others are missing.

    `each_kernel`: ours also with each kernel that the operator has.
    """
    for make in (_ours, Dense, TinyGemm, NF4, Int8, Float8):
        try:
            made = make(problem, device)
            yield from (one for one in made if each_kernel or type(one) is Ours) if isinstance(made, list) else [made]
        except Exception as error:  # a peer that is not installed, or cannot do this problem, is a row that says so
            yield Unavailable(f"{make.__name__}: {type(error).__name__}: {error}")


def _ours(problem: Problem, device: torch.device) -> list[Candidate]:
    layer = QAIGLinear.from_codes(
        problem.codes, problem.scale, problem.zero, bits=problem.bits, group_size=problem.group_size
    ).to(device)
    prepared = layer.to_kernel_layout()
    weight_bytes = sum(p.nbytes for n, p in layer.named_parameters() if n != "weight_shape")
    layers = [layer] + [copy.deepcopy(layer) for _ in range(problem.copies(weight_bytes) - 1)]
    rounded = [copy.copy(one) for one in layers]  # the same tensors
    for one in rounded:
        one.activation_bits = 8
    result = [Ours("qaig" if prepared else "qaig reference", problem, layers, weight_bytes, device)]
    result.append(Ours(result[0].name + " a8", problem, rounded, weight_bytes, device))
    if prepared:
        limits = interface.tuning_for(_capability(device))
        for name, gemm, most_rows, used in (
            ("qaig", "gemm_f16", limits.max_gemm_f16_rows, layers),
            ("qaig a8", "gemm_i8", limits.max_gemm_i8_rows, rounded),
        ):
            kernels = {"gemv": (1, interface.MAX_GEMV_ROWS), gemm: (limits.max_gemv_rows + 1, most_rows)}
            kernels["dequantize"] = (max(limits.max_gemv_rows, most_rows) + 1, MOST_TOKENS)
            for kernel, (least, most) in kernels.items():
                if least <= min(most, MOST_TOKENS):  # not every GPU has every kernel
                    arguments = problem, used, weight_bytes, device, least, most
                    result.append(OursByOneKernel(f"{name} {kernel}", *arguments))
    return result


def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # for a dry run, that of some GPU with every kernel
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


class Ours(OnDevice):
    """As the operator chooses."""

    def __init__(
        self, name: str, problem: Problem, layers: list[QAIGLinear], weight_bytes: int, device: torch.device
    ) -> None:
        super().__init__(device)
        self.name, self.problem, self.layers = name, problem, layers
        self.weight_bytes, self.copies = weight_bytes, len(layers)
        if layers[0].activation_bits == 8:
            self.activations, self.tolerance = "a8", 0.05

    def run(self, copy: int) -> None:
        self.y = self.layers[copy](self.x)

    def weight(self) -> Tensor:
        return self.problem.weight


class OursByOneKernel(Ours):
    """Fewer than `least` tokens are padded and more than `most` are split, so that the operator takes a kernel that it
    would not choose (csrc/cuda/tuning.h).
    """

    def __init__(self, *arguments: Any) -> None:
        *ours, self.least, self.most = arguments
        super().__init__(*ours)

    def prepare(self, x: Tensor) -> None:
        super().prepare(x)
        self.tokens = x.shape[0]
        self.x = pad(self.x, (0, 0, 0, max(0, self.least - self.tokens)))

    def run(self, copy: int) -> None:
        count = -(-self.x.shape[0] // self.most)
        self.parts = [self.layers[copy](part) for part in self.x.tensor_split(count)]

    def output(self) -> Tensor:
        return torch.cat(self.parts)[: self.tokens]
