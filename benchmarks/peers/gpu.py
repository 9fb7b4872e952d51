"""The candidates of `gpu_gemm.py`: ours by its own choice and by each of its three ways, cuBLAS, and packed peers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from transformers_qaig.nn import QAIGLinear

from . import Candidate, Problem, Unavailable

DECODE_ROWS = 16
"""Tokens that one decode launch takes."""

FUSED_ROWS = (33, 128)
"""The least and the most tokens that fused kernels take on every GPU that has them (csrc/cuda/tuning.h)."""

UNPACK_ROWS = 257
"""More tokens than any GPU's `most_fused_rows`: such products unpack the weight."""


def candidates(problem: Problem, device: torch.device) -> Iterator[Candidate | Unavailable]:
    """Those for a problem, each with its weights on the device; why others are missing."""
    for make in (_ours, Dense, TinyGemm, NF4):
        try:
            made = make(problem, device)
            yield from made if isinstance(made, list) else [made]
        except Exception as error:  # a peer that is not installed, or cannot do this problem, is a row that says so
            yield Unavailable(f"{make.__name__}: {type(error).__name__}: {error}")


class OnDevice(Candidate):
    activations = "a16"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, x: Tensor) -> None:
        self.x = x.to(self.device)

    def output(self) -> Tensor:
        return self.y.cpu()


def _ours(problem: Problem, device: torch.device) -> list[Candidate]:
    layer = QAIGLinear.from_codes(
        problem.codes, problem.scale, problem.zero, bits=problem.bits, group_size=problem.group_size
    ).to(device)
    prepared = layer.prepare()
    weight_bytes = sum(p.nbytes for n, p in layer.named_parameters() if n != "weight_shape")
    layers = [layer] + [copy.deepcopy(layer) for _ in range(problem.copies(weight_bytes) - 1)]
    names = (
        {"qaig": Ours, "qaig decode": OursDecode, "qaig fused": OursFused, "qaig unpack": OursUnpack}
        if prepared
        else {"qaig reference": Ours}
    )
    return [kind(name, problem, layers, weight_bytes, device) for name, kind in names.items()]


class Ours(OnDevice):
    """As the operator chooses."""

    def __init__(
        self, name: str, problem: Problem, layers: list[QAIGLinear], weight_bytes: int, device: torch.device
    ) -> None:
        super().__init__(device)
        self.name, self.problem, self.layers = name, problem, layers
        self.weight_bytes, self.copies = weight_bytes, len(layers)

    def run(self, copy: int) -> None:
        self.y = self.layers[copy](self.x)

    def weight(self) -> Tensor:
        return self.problem.weight


class OursInParts(Ours):
    """Few tokens are padded and many are split, so that a way is taken that the operator would not choose."""

    least, most = 1, 1 << 20

    def prepare(self, x: Tensor) -> None:
        super().prepare(x)
        self.tokens = x.shape[0]
        self.x = pad(self.x, (0, 0, 0, max(0, self.least - self.tokens)))

    def run(self, copy: int) -> None:
        count = -(-self.x.shape[0] // self.most)
        self.parts = [self.layers[copy](part) for part in self.x.tensor_split(count)]

    def output(self) -> Tensor:
        return torch.cat(self.parts)[: self.tokens].cpu()


class OursDecode(OursInParts):
    """By decode kernels."""

    most = DECODE_ROWS


class OursFused(OursInParts):
    """By fused kernels; more tokens than one of their launches takes everywhere in several, which costs them."""

    least, most = FUSED_ROWS


class OursUnpack(OursInParts):
    """By unpacking the weight."""

    least = UNPACK_ROWS


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
        return self.weights[0].cpu()


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
        self._weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).cpu()

    def run(self, copy: int) -> None:
        self.y = self.layers[copy](self.x)

    def weight(self) -> Tensor:
        return self._weight
