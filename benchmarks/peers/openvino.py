"""OpenVINO's compressed weights: activations rounded to 8 bits in groups ("dynamic quantization"), bf16, or fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import DISTINCT_ROWS, Candidate, Problem, Unavailable


def candidates(problem: Problem, threads: int) -> Iterator[Candidate | Unavailable]:
    if problem.bits == 3:  # the setting is accepted, but the result is that of fp32
        yield Unavailable("openvino u3: no dynamic quantization")
    else:
        yield Compressed(problem, threads, "a8", "f32", 32)
    yield Compressed(problem, threads, "a16", "bf16", 0)
    if problem.bits in (2, 3):  # elsewhere fp32 is far behind bf16
        yield Compressed(problem, threads, "a16", "f32", 0)


class Compressed(Candidate):
    def __init__(self, problem: Problem, threads: int, activations: str, precision: str, dynamic_group: int) -> None:
        self.name = f"openvino u{problem.bits} " + (f"dq{dynamic_group}" if dynamic_group else precision)
        self.activations = activations
        self.tolerance = 0.05 if activations == "a8" else 0.01
        self.problem = problem
        size = problem.n * problem.k
        self.weight_bytes = size * problem.bits // 8 + size // problem.group_size * (2 + problem.bits / 8)
        self.weight_bytes = int(self.weight_bytes)
        self.copies = problem.copies(self.weight_bytes)
        self.settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": dynamic_group,
        }
        self.compiled: dict[int, Any] = {}

    def prepare(self, x: Tensor) -> None:
        import openvino as ov

        # A model of its own for each copy would mean a thread pool for each, so one model computes with all of them.
        self.calls_per_run = self.copies if len(x) <= 16 else 2
        if self.calls_per_run not in self.compiled:
            model = _model(self.problem, self.calls_per_run)
            self.compiled[self.calls_per_run] = ov.Core().compile_model(model, "CPU", self.settings)
        self.request = self.compiled[self.calls_per_run].create_infer_request()
        self.x = x.float().numpy()  # kept: OpenVINO only points at it
        self.request.set_input_tensor(ov.Tensor(self.x, shared_memory=True))

    def run(self, copy: int) -> None:
        self.request.infer()

    def output(self) -> Tensor:
        return torch.from_numpy(self.request.get_output_tensor(self.calls_per_run - 1).data.copy())

    def weight(self) -> Tensor:
        return self.problem.weight


def _model(problem: Problem, copies: int):
    """`copies` products of x with (codes - zero) * scale, in the pattern that OpenVINO keeps compressed."""
    import openvino as ov
    from openvino import opset13 as ops

    kind = getattr(ov.Type, f"u{problem.bits}")
    groups = problem.k // problem.group_size
    x = ops.parameter([-1, problem.k], np.float32, "x")
    products = []
    for _ in range(copies):
        codes = _constant(problem, problem.codes, kind, [problem.n, groups, problem.group_size])
        zero = _constant(problem, problem.zero, kind, [problem.n, groups, 1])
        scale = ops.constant(problem.scale.half().view(problem.n, groups, 1).numpy())
        weight = ops.multiply(ops.subtract(ops.convert(codes, "f16"), ops.convert(zero, "f16")), scale)
        weight = ops.reshape(weight, np.array([problem.n, problem.k]), False)
        products.append(ops.matmul(x, ops.convert(weight, "f32"), False, True))
    return ov.Model(products, [x])


def _constant(problem: Problem, codes: Tensor, kind, shape: list[int]):
    import openvino as ov
    from openvino import op

    bits = problem.bits
    in_rows = codes.shape[1] * bits % 8 == 0  # else a row ends within a byte, and all are packed in one go
    if in_rows:
        codes = codes[:DISTINCT_ROWS]
    if bits == 3:  # 8 codes in 3 bytes: two bytes of low 2-bit fields, one byte of high bits, first code on top
        eight = codes.view(-1, 8)
        low, high = eight & 3, eight >> 2
        shifts2, shifts1 = torch.tensor([6, 4, 2, 0], dtype=torch.uint8), torch.arange(7, -1, -1, dtype=torch.uint8)
        low = (low.view(-1, 2, 4) << shifts2).sum(-1, dtype=torch.uint8)
        high = (high << shifts1).sum(-1, dtype=torch.uint8, keepdim=True)
        data = torch.cat([low, high], 1)
    else:  # the first code in the lowest bits
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        data = (codes.view(-1, 8 // bits) << shifts).sum(-1, dtype=torch.uint8)
    tensor = ov.Tensor(kind, ov.Shape(shape))
    if in_rows:
        data = problem.repeat(data.view(len(codes), -1))
    tensor.data.view(np.uint8).reshape(-1)[:] = data.flatten().numpy()
    return op.Constant(tensor, shared_memory=False)
