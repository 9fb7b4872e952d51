"""OpenVINO's compressed weights: activations rounded to 8 bits in groups ("dynamic quantization"), bf16, or fp32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from . import Candidate, Problem, Unavailable


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
        import openvino as ov

        self.name = f"openvino u{problem.bits} " + (f"dq{dynamic_group}" if dynamic_group else precision)
        self.activations = activations
        self.tolerance = 0.05 if activations == "a8" else 0.01
        self.problem = problem
        size = problem.n * problem.k
        self.weight_bytes = size * problem.bits // 8 + size // problem.group_size * (2 + problem.bits / 8)
        self.weight_bytes = int(self.weight_bytes)
        self.copies = problem.copies(self.weight_bytes)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": dynamic_group,
        }
        core = ov.Core()
        model = _model(problem)
        self.requests = [core.compile_model(model, "CPU", settings).create_infer_request() for _ in range(self.copies)]

    def prepare(self, x: Tensor) -> None:
        import openvino as ov

        self.x = x.float().numpy()  # kept: OpenVINO only points at it
        self.y = np.zeros((x.shape[0], self.problem.n), np.float32)
        for request in self.requests:
            request.set_input_tensor(ov.Tensor(self.x, shared_memory=True))
            request.set_output_tensor(ov.Tensor(self.y, shared_memory=True))

    def run(self, copy: int) -> None:
        self.requests[copy].infer()

    def output(self) -> Tensor:
        return torch.from_numpy(self.y)

    def weight(self) -> Tensor:
        return self.problem.weight


def _model(problem: Problem):
    """MatMul(x, (codes - zero) * scale), the pattern OpenVINO keeps compressed."""
    import openvino as ov
    from openvino import opset13 as ops

    kind = getattr(ov.Type, f"u{problem.bits}")
    groups = problem.k // problem.group_size
    codes = _constant(problem.codes, kind, [problem.n, groups, problem.group_size])
    zero = _constant(problem.zero, kind, [problem.n, groups, 1])
    scale = ops.constant(problem.scale.half().view(problem.n, groups, 1).numpy())
    weight = ops.multiply(ops.subtract(ops.convert(codes, "f16"), ops.convert(zero, "f16")), scale)
    weight = ops.reshape(weight, np.array([problem.n, problem.k]), False)
    x = ops.parameter([-1, problem.k], np.float32, "x")
    return ov.Model([ops.matmul(x, ops.convert(weight, "f32"), False, True)], [x])


def _constant(codes: Tensor, kind, shape: list[int]):
    import openvino as ov
    from openvino import op

    bits = kind.get_bitwidth()
    tensor = ov.Tensor(kind, ov.Shape(shape))
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
    tensor.data.view(np.uint8).reshape(-1)[:] = data.flatten().numpy()
    return op.Constant(tensor, shared_memory=False)
