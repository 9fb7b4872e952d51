"""Joins the other processes that `torchrun` or `accelerate launch` started around the same script."""

from __future__ import annotations

import itertools
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import RankLost
from .ranks import ALONE, Ranks

MEETING = timedelta(minutes=10)
"""How long a process waits for the others to begin."""
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for one that is alive and does not answer."""
_runs = itertools.count(1)


def number_of_processes() -> int:
    """Returns how many processes the launcher started; 1 without one."""
    if not dist.is_available():
        return 1
    if dist.is_initialized():
        return dist.get_world_size()
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def join() -> Ranks:
    """Meets the other processes of this run.

    Raises:
        RankLost: not all of them came.
    """
    if number_of_processes() == 1:
        return ALONE
    has_own_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    backend = "cpu:gloo,cuda:nccl" if has_own_gpu and dist.is_nccl_available() else "gloo"
    try:
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=MEETING)
        group = dist.new_group(backend=backend, timeout=TIMEOUT)
        meeting = group if backend == "gloo" else dist.new_group(backend="gloo", timeout=MEETING)
        dist.monitored_barrier(meeting, timeout=MEETING)  # which gloo alone has
    except (RuntimeError, ValueError) as error:
        raise RankLost(
            "not all processes of this run reached `from_pretrained` with a configuration to quantize by. Call it in "
            "every process that the launcher started, or quantize in a script without a launcher."
        ) from error
    devices = ("cpu", "cuda") if "nccl" in backend else ("cpu",)
    return Ranks(dist.get_rank(), dist.get_world_size(), group, devices, next(_runs))


def device_of(ranks: Ranks, wanted: torch.device | str | None) -> torch.device | str | None:
    """Returns where a rank computes: where `wanted` says, else on its own accelerator, or the CPU (None)."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if wanted is not None or found is None or ranks.size == 1:
        return wanted or found
    return torch.device(found.type, int(os.environ.get("LOCAL_RANK", ranks.rank)) % torch.accelerator.device_count())
