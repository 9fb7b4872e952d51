"""ONNX Runtime's MatMulNBits: accuracy_level 4 rounds activations to 8 bits, level 0 computes in float32."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from . import DISTINCT_ROWS, Candidate, Problem, Unavailable


def candidates(problem: Problem, threads: int) -> Iterator[Candidate | Unavailable]:
    if problem.bits == 3:
        yield Unavailable("onnxruntime MatMulNBits: no 3-bit weights")
        return
    _share_pool(threads)
    yield MatMulNBits(problem, accuracy_level=4)
    yield MatMulNBits(problem, accuracy_level=0)


@functools.cache  # a second call is an error
def _share_pool(threads: int) -> None:
    """One thread pool for all sessions, as the layers of one model have."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)


class MatMulNBits(Candidate):
    def __init__(self, problem: Problem, accuracy_level: int) -> None:
        self.name = f"onnxruntime MatMulNBits acc{accuracy_level}"
        self.activations = "a8" if accuracy_level == 4 else "a16"
        self.tolerance = 0.05 if accuracy_level == 4 else 0.01
        codes, scale, zero = problem.codes, problem.scale.float(), problem.zero
        if problem.bits < 8:
            codes, zero = (problem.repeat(_pack_bytes(t[:DISTINCT_ROWS], problem.bits)) for t in (codes, zero))
        groups = problem.k // problem.group_size
        arrays = {
            "b": codes.view(problem.n, groups, -1).numpy(),
            "scale": scale.flatten().numpy(),
            "zero": zero.flatten().numpy(),
        }
        self.weight_bytes = sum(a.nbytes for a in arrays.values())
        self.copies = problem.copies(self.weight_bytes)
        model = _model(problem, accuracy_level, arrays)
        self.sessions = [_session(model) for _ in range(self.copies)]
        self.problem = problem

    def prepare(self, x: Tensor) -> None:
        import onnxruntime

        value = onnxruntime.OrtValue.ortvalue_from_numpy(x.float().numpy())
        self.y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((x.shape[0], self.problem.n), np.float32))
        self.bindings = []
        for session in self.sessions:
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", value)
            binding.bind_ortvalue_output("y", self.y)
            self.bindings.append(binding)

    def run(self, copy: int) -> None:
        self.sessions[copy].run_with_iobinding(self.bindings[copy])

    def output(self) -> Tensor:
        return torch.from_numpy(self.y.numpy())

    def weight(self) -> Tensor:
        return self.problem.weight


def _pack_bytes(codes: Tensor, bits: int) -> Tensor:
    """Codes along the last axis into bytes, the first in the lowest bits."""
    parts = codes.view(*codes.shape[:-1], -1, 8 // bits)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (parts << shifts).sum(-1, dtype=torch.uint8)


def _model(problem: Problem, accuracy_level: int, arrays: dict[str, np.ndarray]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "MatMulNBits", ["x", "b", "scale", "zero"], ["y"], domain="com.microsoft",
        K=problem.k, N=problem.n, bits=problem.bits, block_size=problem.group_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", problem.k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", problem.n])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _session(model: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
