"""The peers of `gpu_gemm.py`: cuBLAS, other packed products, and products of activations that are rounded to 8 bits."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from . import OnDevice, Problem


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
    """Rows that `_int_mm` takes at the least; fewer are padded, before the time counts."""

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
