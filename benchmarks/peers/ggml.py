"""ggml's quantized formats (activations rounded to 8 bits inside), plain and in its repacked layouts."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import DISTINCT_ROWS, Candidate, Problem, Unavailable

FORMATS = {2: ("q2_K",), 3: ("q3_K", "iq3_s"), 4: ("q4_K", "q4_0"), 8: ("q8_0",)}
LIBRARY = Path(os.environ.get("QAIG_GGML_DRIVER") or Path(sys.prefix) / "ggml" / "libggml_driver.so")


def candidates(problem: Problem, threads: int) -> Iterator[Candidate | Unavailable]:
    if not LIBRARY.exists():
        yield Unavailable(f"ggml: {LIBRARY} is not built; see benchmarks/README.md")
        return
    library = ctypes.CDLL(str(LIBRARY))
    library.ggml_driver_new.restype = ctypes.c_void_p
    for kind in FORMATS[problem.bits]:
        for repack in (False, True):
            try:
                yield MulMat(library, problem, kind, repack, threads)
            except Unavailable as reason:
                yield reason


class MulMat(Candidate):
    activations, tolerance = "a8", 0.05

    def __init__(self, library: ctypes.CDLL, problem: Problem, kind: str, repack: bool, threads: int) -> None:
        self.name = f"ggml {kind}" + (" repacked" if repack else "")
        self.library, self.n = library, problem.n
        library.ggml_driver_row_size.restype = ctypes.c_int64
        self.weight_bytes = problem.n * library.ggml_driver_row_size(kind.encode(), ctypes.c_int64(problem.k))
        self.copies = problem.copies(self.weight_bytes)
        rows = problem.weight[:DISTINCT_ROWS].contiguous()
        dequantized = torch.empty_like(rows)
        handle = library.ggml_driver_new(
            kind.encode(), repack, ctypes.c_int64(problem.n), ctypes.c_int64(problem.k), ctypes.c_int64(len(rows)),
            _pointer(rows), _pointer(dequantized), self.copies, threads,
        )  # fmt: skip
        if not handle:
            raise Unavailable(f"{self.name}: no such layout in this build on this CPU")
        self.handle = ctypes.c_void_p(handle)
        self._weight = dequantized.repeat(-(-problem.n // len(rows)), 1)[: problem.n]

    def prepare(self, x: Tensor) -> None:
        self.x = x.float()
        self.library.ggml_driver_prepare(self.handle, ctypes.c_int64(len(x)), _pointer(self.x))

    def run(self, copy: int) -> None:
        self.last = copy
        self.library.ggml_driver_run(self.handle, copy)

    def output(self) -> Tensor:
        y = torch.empty(len(self.x), self.n)
        self.library.ggml_driver_output(self.handle, self.last, _pointer(y))
        return y

    def weight(self) -> Tensor:
        return self._weight

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.library.ggml_driver_free(self.handle)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
