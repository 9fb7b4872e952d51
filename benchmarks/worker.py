"""One peer in a process of its own, told what to do over a pipe.

A request is a tuple (method name, arguments...), the answer ("ok", value) or ("error", message).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peers import Candidate, Problem, Unavailable

REALTIME_SECONDS = 0.9
"""A real-time burst is shorter: Linux takes the processor from real-time threads for 5 % of every second."""

LONG_SECONDS = 0.05
"""A call as long as this needs no warming up: threads wake and caches fill in a thousandth of it."""


class Worker:
    """The parent's end: starts the process; `ask` calls a method of `Server` there."""

    def __init__(self, peer: str, threads: int, environment: dict[str, str] | None = None, label: str = "") -> None:
        self.peer, self.label = peer, label
        before = dict(os.environ)
        # Waiting threads spin, as in a program that does nothing else; between bursts they have gone to sleep.
        os.environ.pop("OMP_WAIT_POLICY", None)
        os.environ.update(environment or {}, OMP_NUM_THREADS=str(threads))
        try:
            self.connection, other = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            self.process = context.Process(target=serve, args=(other, peer, threads), daemon=True)
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        other.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """The method's result.

        Raises:
            RuntimeError: it raised, or the process died.
        """
        try:
            self.connection.send((method, *arguments))
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise RuntimeError(f"{self.peer}: the process died with exit code {self.process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(value)
        return value

    def stop(self) -> None:
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def serve(connection: Connection, peer: str, threads: int) -> None:
    """The child's main loop: until the parent closes the pipe."""
    torch.set_grad_enabled(False)
    server = Server(peer, threads)
    with contextlib.suppress(EOFError):
        while True:
            method, *arguments = connection.recv()
            try:
                connection.send(("ok", getattr(server, method)(*arguments)))
            except Exception as error:
                connection.send(("error", f"{peer}: {type(error).__name__}: {error}"))


class Server:
    def __init__(self, peer: str, threads: int) -> None:
        self.peer, self.threads = peer, threads
        self.candidates: list[Candidate] = []
        self.call_seconds: dict[int, float] = {}

    def build(self, problem: Problem) -> list[dict[str, Any] | str]:
        """Makes the candidates: for each a description, or why there is none."""
        self.candidates.clear()
        self.call_seconds.clear()
        described: list[dict[str, Any] | str] = []
        module = importlib.import_module(f"peers.{self.peer}")
        for candidate in module.candidates(problem, self.threads):
            if isinstance(candidate, Unavailable):
                described.append(str(candidate))
                continue
            self.candidates.append(candidate)
            described.append(
                {
                    "name": candidate.name,
                    "activations": candidate.activations,
                    "weight_bytes": candidate.weight_bytes,
                    "operations": getattr(candidate, "operations", None),
                    "isa": candidate.isa,
                    "rows": problem.n,
                    "index": len(self.candidates) - 1,
                }
            )
        return described

    def prepare(self, index: int, m: int, k: int) -> float:
        """Hands x to the candidate and checks one result. Returns its relative error.

        Raises:
            ValueError: the error is above the candidate's tolerance.
        """
        candidate = self.candidates[index]
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).bfloat16()
        candidate.prepare(x)
        # The first call of a weight may convert it to another layout: it must not be timed.
        runs = candidate.copies if index not in self.call_seconds and candidate.calls_per_run == 1 else 1
        for copy in range(runs):
            start = time.perf_counter()
            candidate.run(copy)
            self.call_seconds[index] = time.perf_counter() - start
        error = candidate.error(x)
        if not error <= candidate.tolerance:
            raise ValueError(f"{candidate.name}: wrong result, relative error {error:.3g}")
        return error

    def burst(self, index: int, seconds: float, first_copy: int) -> tuple[list[float], bool]:
        """Calls the candidate for that long, after one call that warms it up, unless calls are long.

        Returns:
            `tuple`: seconds of each call, and whether they ran in real time: not disturbed by other processes.
        """
        candidate = self.candidates[index]
        run, copies, clock, copy = candidate.run, candidate.copies, time.perf_counter, first_copy
        times = []
        with realtime() as granted:
            stop = clock() + min(seconds, REALTIME_SECONDS)
            if self.call_seconds[index] < LONG_SECONDS:
                run(copy % copies)
            while True:
                copy += 1
                start = clock()
                run(copy % copies)
                end = clock()
                times.append((end - start) / candidate.calls_per_run)
                if end >= stop:
                    return times, granted


@contextlib.contextmanager
def realtime() -> Iterator[bool]:
    """Raises all threads of this process above ordinary processes, if that is permitted.

    Threads of two processes that spin in real time would starve each other, so they wait for a lock file.
    """
    with (Path(tempfile.gettempdir()) / "qaig-benchmark.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # In turns: a library with more spinning threads than processors would wait for ever for the one without.
        granted = _schedule("SCHED_RR", 1)
        try:
            yield granted
        finally:
            _schedule("SCHED_OTHER", 0)


def _schedule(policy: str, priority: int) -> bool:
    """Sets the policy of the threads there are now: some may have been started, and inherited one, since."""
    if not hasattr(os, policy):
        return False
    granted = True
    for task in os.listdir("/proc/self/task"):
        try:
            os.sched_setscheduler(int(task), getattr(os, policy), os.sched_param(priority))
        except ProcessLookupError:
            continue
        except PermissionError:
            granted = False
    return granted
