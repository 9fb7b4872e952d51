"""The machine's limits as candidates: the best of several ways to read memory, and arithmetic peaks."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import Candidate, Problem

SOURCE = Path(__file__).parents[1] / "limits.cpp"
BYTES = 256 << 20
STEPS = 200_000
"""Of the arithmetic peaks: about a millisecond a call."""


def candidates(problem: Problem, threads: int) -> Iterator[Candidate]:
    library = compile_library()
    reads = [Read(library, threads, *options) for options in itertools.product(*Read.OPTIONS)]
    for _ in range(4):
        for read in reads:
            read.trial()
    # The fastest ways stay in the race: which of them is ahead may change with the machine's load.
    yield from sorted(reads, key=lambda read: min(read.trials))[:3]
    for kind in ("amx-int8", "amx-bf16", "vnni", "bf16", "fma"):
        if library.limits_peak(kind.encode(), threads, ctypes.c_int64(1)):
            yield Peak(library, threads, kind)


def compile_library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limits.so"
        subprocess.run(["g++", "-O2", "-fopenmp", "-shared", "-fPIC", str(SOURCE), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    library.limits_allocate.restype = ctypes.c_void_p
    library.limits_peak.restype = ctypes.c_int64
    return library


class Limit(Candidate):
    activations, copies = "limit", 1

    def prepare(self, x: Tensor) -> None:
        pass

    def error(self, x: Tensor) -> float:
        return 0.0

    def output(self) -> Tensor:
        raise NotImplementedError

    def weight(self) -> Tensor:
        raise NotImplementedError


class Read(Limit):
    """`weight_bytes` are the bytes one call reads."""

    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    OPTIONS = ((False, True), (False, True) if has_avx512 else (False,), (1, 2, 4), (0, 1024))
    _memory: dict[bool, int] = {}  # noqa: RUF012  (shared by all: 256 MiB each)

    def __init__(self, library: ctypes.CDLL, threads: int, huge: bool, avx512: bool, streams: int, ahead: int) -> None:
        if huge not in self._memory:
            self._memory[huge] = library.limits_allocate(ctypes.c_size_t(BYTES), huge)
        self.name = (
            f"read: {'huge' if huge else '4 KiB'} pages, {'AVX-512' if avx512 else 'AVX2'}, {streams} streams, "
            f"prefetch {ahead} B"
        )
        self.weight_bytes, self.library, self.trials = BYTES, library, []
        self.arguments = (
            ctypes.c_void_p(self._memory[huge]), ctypes.c_size_t(BYTES), threads, avx512, streams,
            ctypes.c_size_t(ahead),
        )  # fmt: skip

    def trial(self) -> None:
        start = time.perf_counter()
        self.run(0)
        self.trials.append(time.perf_counter() - start)

    def run(self, copy: int) -> None:
        self.library.limits_read(*self.arguments)


class Peak(Limit):
    weight_bytes = 0

    def __init__(self, library: ctypes.CDLL, threads: int, kind: str) -> None:
        self.name, self.library = f"peak: {kind}", library
        self.arguments = (kind.encode(), threads, ctypes.c_int64(STEPS))
        self.operations = library.limits_peak(*self.arguments)

    def run(self, copy: int) -> None:
        self.library.limits_peak(*self.arguments)
