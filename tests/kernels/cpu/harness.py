"""Calls of the CPU kernels without torch, run by `harness.cpp` in every instruction set that a processor has."""

import os
import shlex
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from transformers_qaig.formats.packing import KERNEL_BITS
from transformers_qaig.nn import QAIGLinear

_SCALARS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@dataclass
class Call:
    """One call: layers with an x `[rows, in_features]` each, by `linear` if it is one, else by `grouped_linear`.

    Layers of one call have the same `in_features`.
    """

    layers: list[tuple[QAIGLinear, Tensor]]
    dequantize: bool = False

    @property
    def layouts(self) -> int:
        """In how many layouts the weights are multiplied: the checkpoint's, and the CPU's if all have it."""
        return 1 + all(layer.bits in KERNEL_BITS for layer, _ in self.layers)


@dataclass
class Result:
    """What one instruction set computes: `y[layout][layer]`, and the weights in float32 if they were asked for."""

    y: list[list[Tensor]]
    weights: list[Tensor]


@dataclass(frozen=True)
class Harness:
    """The compiled harness, by the words of its command: an emulator may come first."""

    command: tuple[str, ...]

    def ask(self, *arguments: str, **environment: str) -> str:
        """Runs it, and returns what it prints."""
        command = [*self.command, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
        assert done.returncode == 0, f"{shlex.join(command)} failed with status {done.returncode}: {done.stderr}"
        return done.stdout

    def isas(self) -> list[str]:
        """Lists the instruction sets that the processor has."""
        return self.ask().split("\n")[0].split()

    def run(self, calls: list[Call], folder: Path) -> list[dict[str, Result]]:
        """Runs calls, and returns for each the results of every instruction set."""
        (folder / "calls").write_bytes(struct.pack("<q", len(calls)) + b"".join(_call(call) for call in calls))
        self.ask(str(folder / "calls"), str(folder / "results"))
        reader, isas = _Reader((folder / "results").read_bytes()), self.isas()
        results = [{isa: reader.result(call) for isa in isas} for call in calls]
        reader.check_end()
        return results


def _call(call: Call) -> bytes:
    head = struct.pack("<2q", len(call.layers), call.dequantize)
    return head + b"".join(_layer(layer, x) for layer, x in call.layers)


def _layer(layer: QAIGLinear, x: Tensor) -> bytes:
    zero, bias, rotation = layer.weight_zero_point, layer.bias, layer.rotation
    channels = layer.in_features if layer.group_size == -1 else layer.group_size
    fields = (
        layer.bits, layer.out_features, layer.in_features, channels, _SCALARS[layer.weight_scale.dtype],
        zero is not None, _SCALARS[x.dtype], len(x), bias is not None, rotation.block if rotation else 0,
        rotation.seed if rotation else 0, layer.activation_bits,
    )  # fmt: skip
    arrays = (layer.weight_packed, layer.weight_scale, zero, None if bias is None else bias.float(), x)
    return struct.pack("<12q", *fields) + b"".join(_bytes(array) for array in arrays if array is not None)


def _bytes(array: Tensor) -> bytes:
    return array.detach().reshape(-1).clone().view(torch.uint8).numpy().tobytes()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._at = 0

    def result(self, call: Call) -> Result:
        y = [[self._array((len(x), n.out_features), x.dtype) for n, x in call.layers] for _ in range(call.layouts)]
        shapes = [(layer.out_features, layer.in_features) for layer, _ in call.layers if call.dequantize]
        return Result(y, [self._array(shape, torch.float32) for shape in shapes])

    def check_end(self) -> None:
        assert self._at == len(self._data)

    def _array(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        size = shape[0] * shape[1] * dtype.itemsize
        self._at += size
        assert self._at <= len(self._data)
        return self._data[self._at - size : self._at].clone().view(dtype).view(shape)
