"""Runs functions in children of this process, each with limits on time and memory, a few at once."""

import os
import pickle
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import transformers_qaig

PACKAGE = str(Path(transformers_qaig.__file__).parent)
SECONDS = 60  # what takes a second on an idle machine
MEMORY = 2 << 30
JOBS = os.cpu_count() or 1


@dataclass
class Ended:
    """
    How a child ended.

    Attributes:
        how: `"value"`, `"error"`, `"signal"` or `"hang"`.
        value: what the function returned, the error's text, or the signal's number.
        ours: whether the error was raised by this package.
    """

    how: str
    value: object
    ours: bool = False


def run_all(functions: Iterable[Callable[[], object]]) -> Iterator[Ended]:
    """Runs each function in a child and yields how they ended, in order. At most `JOBS` of them live at a time."""
    waiting: list[_Child] = []
    for function in functions:
        waiting.append(_Child(function))
        if len(waiting) >= JOBS:
            yield waiting.pop(0).ended()
    for child in waiting:
        yield child.ended()


class _Child:
    def __init__(self, function: Callable[[], object]) -> None:
        self.reader, writer = os.pipe()
        self.deadline = time.monotonic() + SECONDS
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.reader)
            os.write(writer, pickle.dumps(_run(function))[: 1 << 16])
            os._exit(0)
        os.close(writer)

    def ended(self) -> Ended:
        """Waits for the end, or makes one."""
        try:
            while time.monotonic() < self.deadline:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return self._ended(status)
                time.sleep(0.002)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return Ended("hang", SECONDS)
        finally:
            os.close(self.reader)

    def _ended(self, status: int) -> Ended:
        if os.WIFSIGNALED(status):
            return Ended("signal", os.WTERMSIG(status))
        text = os.read(self.reader, 1 << 16)
        return pickle.loads(text) if text else Ended("signal", os.WEXITSTATUS(status))


def _run(function: Callable[[], object]) -> Ended:
    torch.set_num_threads(1)  # the threads of the parent are not here
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    try:
        return Ended("value", function())
    except BaseException as error:
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        return Ended("error", f"{type(error).__name__}: {error}"[:8000], frames[-1].startswith(PACKAGE))
