"""Children that are killed at a moment, or have no room to write."""

import io
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable

import tqdm.auto


def killed(function: Callable[[], object], seconds: float) -> bool:
    """Runs `function` in a child and kills it with SIGKILL after that time; whether it was still at work."""
    child = os.fork()
    if child == 0:
        _own_lock()
        try:
            function()
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def error_with_a_full_disk(function: Callable[[], object], size: int) -> str:
    """
    What the error of `function` says, in a child where no file can grow beyond `size` bytes, as if the disk were full;
    empty if there is none. The child writes no output: pytest keeps that in a file.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _own_lock()
        said = ""
        sys.stdout = sys.stderr = io.StringIO()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, said.encode()[:10_000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def _own_lock() -> None:
    """Progress bars share a lock with the parent, which would wait for a child that was killed with it."""
    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(threading.RLock())
