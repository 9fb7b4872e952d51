"""The candidates of `cpu_gemm.py` and `gpu_gemm.py`: what each must offer, and the list of those on the CPU.

Such a peer is a module of this package with a function `candidates(problem, threads)`. It runs in a process of its own
(`worker.py`), so thread pools, environment variables and crashes of one peer do not reach another.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod

import torch
from torch import Tensor

PEERS = ("qaig", "torch_native", "onnx_runtime", "openvino", "ggml", "bitsandbytes")
"""Modules of this package, in the order they are measured; `limits` always runs beside them."""

DISTINCT_ROWS = 256
"""Rows of the weight that differ; the rest repeats them, so that slow quantizers have little to do."""


class Unavailable(Exception):
    """The peer cannot do this problem; the message says why and becomes its row."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """y = x W^T with a weight `[n, k]` of `bits`-bit codes and one scale and zero point per `group_size` inputs."""

    n: int
    k: int
    bits: int
    group_size: int
    stream_bytes: int
    """A candidate keeps at least this many bytes of weights, in copies used in turn: more than the last-level cache."""

    @functools.cached_property
    def codes(self) -> Tensor:
        """uint8 `[n, k]`."""
        generator = torch.Generator().manual_seed(self.bits)
        codes = torch.randint(1 << self.bits, (DISTINCT_ROWS, self.k), generator=generator, dtype=torch.uint8)
        return self.repeat(codes)

    @functools.cached_property
    def scale(self) -> Tensor:
        """bfloat16 `[n, k / group_size]`, such that y has about unit variance for x of unit variance."""
        generator = torch.Generator().manual_seed(100 + self.bits)
        scale = torch.rand(DISTINCT_ROWS, self.k // self.group_size, generator=generator) + 0.5
        return self.repeat(scale / (0.3 * (1 << self.bits) * self.k**0.5)).bfloat16()

    @functools.cached_property
    def zero(self) -> Tensor:
        """uint8 `[n, k / group_size]`, near the middle of the codes."""
        generator = torch.Generator().manual_seed(200 + self.bits)
        middle, spread = 1 << (self.bits - 1), max(1, 1 << (self.bits - 3)) if self.bits > 2 else 1
        shape = (DISTINCT_ROWS, self.k // self.group_size)
        return self.repeat(torch.randint(middle - spread, middle + spread, shape, generator=generator).byte())

    @functools.cached_property
    def weight(self) -> Tensor:
        """float32 `[n, k]`: (codes - zero) * scale."""
        codes, scale, zero = (t[:DISTINCT_ROWS] for t in (self.codes, self.scale.float(), self.zero))
        groups = codes.view(len(codes), -1, self.group_size).float()
        return self.repeat(((groups - zero.unsqueeze(-1)) * scale.unsqueeze(-1)).view(len(codes), self.k))

    def copies(self, weight_bytes: int) -> int:
        return max(2, -(-self.stream_bytes // weight_bytes))

    def repeat(self, rows: Tensor) -> Tensor:
        """The `n` rows of which these are the distinct ones."""
        return rows.repeat(-(-self.n // DISTINCT_ROWS), 1)[: self.n].contiguous()


class Candidate(ABC):
    """One way to compute the product, holding `copies` equal weights.

    Attributes:
        name (`str`): names library, format and settings.
        activations (`str`): `"a8"` if activations are rounded to 8 bits inside, else `"a16"`; `"bf16"` and `"fp32"`
            for dense products. `"limit"` for limits of the machine.
        weight_bytes (`int`): bytes one call must read of one weight, scales and zero points included.
        copies (`int`): how many weights there are.
        tolerance (`float`): the relative error above which a result is wrong.
        calls_per_run (`int`): products that one `run` computes.
        isa (`str`, *optional*): the instruction set, where the candidate says which.
    """

    name: str
    activations: str
    weight_bytes: int
    copies: int
    tolerance = 0.01
    calls_per_run = 1
    isa: str | None = None

    @abstractmethod
    def prepare(self, x: Tensor) -> None:
        """Takes x, bfloat16 `[m, k]`, converted to the dtype the peer likes best; not timed."""

    @abstractmethod
    def run(self, copy: int) -> None:
        """The timed call, y = x W^T with weight number `copy`; y stays inside."""

    @abstractmethod
    def output(self) -> Tensor:
        """y `[m, n]` of the last `run`."""

    @abstractmethod
    def weight(self) -> Tensor:
        """`[n, k]`: the weight as this peer reads it, its own rounding included."""

    def error(self, x: Tensor) -> float:
        """‖y - x W^T‖ / ‖x W^T‖ of the last `run` on a sample of x's and W's rows, x W^T in float64."""
        x_rows = torch.linspace(0, x.shape[0] - 1, min(8, x.shape[0])).long()
        weight = self.weight()
        w_rows = torch.linspace(0, weight.shape[0] - 1, 97).long()
        expected = x[x_rows].double() @ weight[w_rows].double().cpu().T
        return float((self.output()[x_rows][:, w_rows].double().cpu() - expected).norm() / expected.norm())


class OnDevice(Candidate):
    """A candidate whose x and y are on a GPU."""

    activations = "a16"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, x: Tensor) -> None:
        self.x = x.to(self.device)

    def output(self) -> Tensor:
        return self.y
