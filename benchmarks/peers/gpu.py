"""The candidates of `gpu_gemm.py`: ours by its own choice and by each of its ways, cuBLAS, and packed peers.

Each with 16-bit activations, or with activations rounded to 8 bits ("a8"): those are held against products of rounded
activations only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from transformers_qaig.kernels.cuda import interface
from transformers_qaig.nn import QAIGLinear

from . import Candidate, Problem, Unavailable

MOST_TOKENS = 1 << 14
"""A way that begins beyond is not measured."""


def candidates(problem: Problem, device: torch.device, ways: bool = True) -> Iterator[Candidate | Unavailable]:
    """Those for a problem, each with its weights on the device; why others are missing.

    `ways`: ours also by each way that the operator has.
    """
    for make in (_ours, Dense, TinyGemm, NF4, Int8, Float8):
        try:
            made = make(problem, device)
            yield from (one for one in made if ways or type(one) is Ours) if isinstance(made, list) else [made]
        except Exception as error:  # a peer that is not installed, or cannot do this problem, is a row that says so
            yield Unavailable(f"{make.__name__}: {type(error).__name__}: {error}")


class OnDevice(Candidate):
    activations = "a16"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, x: Tensor) -> None:
        self.x = x.to(self.device)

    def output(self) -> Tensor:
        return self.y


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
        for name, most_tiled, used in (
            ("qaig", limits.max_gemm_f16_rows, layers),
            ("qaig a8", limits.max_gemm_i8_rows, rounded),
        ):
            tiled = "fused" if used is layers else "integer"
            ways = {"decode": (1, interface.MAX_GEMV_ROWS), tiled: (limits.max_gemv_rows + 1, most_tiled)}
            ways["unpack"] = (max(limits.max_gemv_rows, most_tiled) + 1, MOST_TOKENS)
            for way, (least, most) in ways.items():
                if least <= min(most, MOST_TOKENS):  # not every GPU has every way
                    result.append(OursByOneWay(f"{name} {way}", problem, used, weight_bytes, device, least, most))
    return result


def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # for a dry run, that of some GPU with every way
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


class OursByOneWay(Ours):
    """Fewer than `least` tokens are padded and more than `most` are split, so that a way is taken that the operator
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


class Dense(OnDevice):
    name, activations = "torch bf16 F.linear", "bf16"

    def __init__(self, problem: Problem, device: torch.device) -> None:
        super().__init__(device)
        weight = problem.weight.bfloat16().to(device)
        self.weight_bytes = weight.nbytes
        self.copies = problem.copies(self.weight_bytes)
        self.weights = [weight] + [weight.clone() for _ in range(self.copies - 1)]

    def run(self, copy: int) -> None:
        self.y = linear(self.x, self.weights[copy])

    def weight(self) -> Tensor:
        return self.weights[0]


class TinyGemm(OnDevice):
    """torch's own 4-bit product on CUDA: (code - 8) * scale + offset."""

    name = "torch _weight_int4pack_mm"

    def __init__(self, problem: Problem, device: torch.device) -> None:
        super().__init__(device)
        if problem.bits != 4 or device.type != "cuda":
            raise NotImplementedError("4 bits on CUDA only")
        scale = problem.scale.float()
        offset = (8 - problem.zero.float()) * scale
        self.scale_and_offset = torch.stack([scale, offset], -1).transpose(0, 1).contiguous().bfloat16().to(device)
        pairs = (problem.codes[:, ::2] << 4 | problem.codes[:, 1::2]).to(device)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
        self.weight_bytes = packed.nbytes + self.scale_and_offset.nbytes
        self.copies = problem.copies(self.weight_bytes)
        self.packed = [packed] + [packed.clone() for _ in range(self.copies - 1)]
        self.group_size = problem.group_size
        groups = problem.codes.view(problem.n, -1, problem.group_size).float() - 8
        rounded, shift = (t.cpu().transpose(0, 1).unsqueeze(-1).float() for t in self.scale_and_offset.unbind(-1))
        self._weight = (groups * rounded + shift).view(problem.n, problem.k)

    def run(self, copy: int) -> None:
        self.y = torch.ops.aten._weight_int4pack_mm(self.x, self.packed[copy], self.group_size, self.scale_and_offset)

    def weight(self) -> Tensor:
        return self._weight


class NF4(OnDevice):
    name = "bitsandbytes nf4"
    tolerance = 0.02

    def __init__(self, problem: Problem, device: torch.device) -> None:
        import bitsandbytes

        super().__init__(device)
        if problem.bits != 4:
            raise NotImplementedError("4 bits only")
        layer = bitsandbytes.nn.Linear4bit(problem.k, problem.n, False, torch.bfloat16, quant_type="nf4")
        layer.load_state_dict({"weight": problem.weight.bfloat16()})
        layer = layer.to(device).eval()
        self.weight_bytes = problem.n * problem.k // 2 + problem.n * problem.k // 64 * 4
        self.copies = problem.copies(self.weight_bytes)
        self.layers = [layer] + [copy.deepcopy(layer) for _ in range(self.copies - 1)]
        self._weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)

    def run(self, copy: int) -> None:
        self.y = self.layers[copy](self.x)

    def weight(self) -> Tensor:
        return self._weight


class Rounded(OnDevice):
    """A product of activations that are rounded to 8 bits per token, on the fly as ours are, by torch's operators."""

    activations, tolerance = "a8", 0.05
    dtype: torch.dtype
    largest: float

    def __init__(self, problem: Problem, device: torch.device) -> None:
        super().__init__(device)
        weight = problem.weight.to(device)
        self.scale = weight.abs().amax(1) / self.largest
        weight = self.cast(weight / self.scale[:, None])
        self.weight_bytes = weight.nbytes + self.scale.nbytes
        self.copies = problem.copies(self.weight_bytes)
        self.weights = [weight] + [weight.clone() for _ in range(self.copies - 1)]

    def cast(self, values: Tensor) -> Tensor:
        return values.to(self.dtype)

    def rounded(self) -> tuple[Tensor, Tensor]:
        """x as it is multiplied, and each token's scale."""
        scale = self.x.abs().amax(1, keepdim=True).float().clamp(min=1e-5) / self.largest
        return self.cast(self.x / scale), scale

    def weight(self) -> Tensor:
        return self.weights[0].float() * self.scale[:, None]


class Int8(Rounded):
    name, dtype, largest = "torch _int_mm int8", torch.int8, 127.0
    LEAST = 17
    """Rows that `_int_mm` wants; fewer are padded, before the time counts."""

    def prepare(self, x: Tensor) -> None:
        super().prepare(x)
        self.tokens = x.shape[0]
        self.x = pad(self.x, (0, 0, 0, max(0, self.LEAST - self.tokens)))

    def cast(self, values: Tensor) -> Tensor:
        return values.round().to(self.dtype)

    def run(self, copy: int) -> None:
        x, scale = self.rounded()
        self.y = (torch._int_mm(x, self.weights[copy].t()) * (scale * self.scale)).bfloat16()

    def output(self) -> Tensor:
        return self.y[: self.tokens]


class Float8(Rounded):
    name, dtype, largest = "torch _scaled_mm float8", torch.float8_e4m3fn, 448.0

    def __init__(self, problem: Problem, device: torch.device) -> None:
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
            raise NotImplementedError("on CUDA from compute capability 8.9 on")
        super().__init__(problem, device)

    def run(self, copy: int) -> None:
        x, scale = self.rounded()
        self.y = torch._scaled_mm(
            x, self.weights[copy].t(), scale_a=scale, scale_b=self.scale[None], out_dtype=torch.bfloat16
        )
