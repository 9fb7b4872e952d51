"""Runs a function in several processes that meet as those of a launcher do."""

import hashlib
import io
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.robustness.kills import _own_lock as own_lock


def in_processes(number: int, function: Callable[[int], Any], seconds: float = 120) -> list[Any]:
    """What `function(rank)` returns in each of `number` forked processes: an exception as it is, None if it died.

    This process holds the store that they meet at, as `torchrun` does, so none of them loses it when another one ends.
    Those that are still at work after some time are killed, and fail the test.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    children = [_start(rank, number, store.port, function) for rank in range(number)]
    end = time.monotonic() + seconds
    try:
        return [_result(reader, child, end) for reader, child in children]
    finally:
        for _, child in children:
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def _start(rank: int, number: int, port: int, function: Callable[[int], Any]) -> tuple[int, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return reader, child
    os.close(reader)
    own_lock()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number), LOCAL_WORLD_SIZE=str(number))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    sys.stdout = sys.stderr = io.StringIO()
    try:
        found = function(rank)
    except Exception as error:
        found = RuntimeError(f"{type(error).__name__}: {error}")
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(found, pipe)
    os._exit(0)


def _result(reader: int, child: int, end: float) -> Any:
    with os.fdopen(reader, "rb") as pipe:
        os.set_blocking(reader, False)
        text = b""
        while time.monotonic() < end:
            piece = pipe.read()
            if piece == b"":
                return pickle.loads(text) if text else None
            text += piece or b""
            time.sleep(0.01)
    raise AssertionError(f"a process hung: {child}")


def digest(model: nn.Module) -> str:
    """A hash of everything that a model stores."""
    found = hashlib.blake2b()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def same(results: Sequence[Any]) -> bool:
    return len(set(results)) == 1
