"""Tensor parallelism over two processes is refused, with the reason."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

CODE = """
import sys
import torch.distributed as dist
import transformers_qaig
from transformers import AutoModelForImageTextToText as Auto
from transformers.distributed import DistributedConfig
dist.init_process_group("gloo")
try:
    Auto.from_pretrained(sys.argv[1], distributed_config=DistributedConfig(tp_size=dist.get_world_size()))
except NotImplementedError as error:
    print("refused:", error)
else:
    print("loaded")
"""


def run(folder: Path, world: int) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-c", CODE, str(folder)]
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=Path(__file__).parents[2],
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        return [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
def test_two_processes_are_refused(quantized: tuple[nn.Module, Path]) -> None:
    for output in run(quantized[1], 2):
        assert "refused: `tp_plan` with 2 processes: packed layers cannot be sharded" in output, output
