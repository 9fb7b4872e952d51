"""Samples and questions as files of tensors, for processes in other environments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Inputs = dict[str, Tensor]


def write_inputs(path: Path, inputs: Sequence[Inputs], spans: Sequence[tuple[int, int]] = ()) -> None:
    """
    Args:
        path: file to write.
        inputs: a model's inputs, batch size 1 each.
        spans: (start, stop) of each one's answer, if they are questions.
    """
    tensors = {f"{i}/{name}": value.contiguous() for i, one in enumerate(inputs) for name, value in one.items()}
    save_file(tensors, path, {"number": str(len(inputs)), "spans": json.dumps([list(span) for span in spans])})


def read_inputs(path: str | Path) -> tuple[list[Inputs], list[tuple[int, int]]]:
    """What `write_inputs` wrote."""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        inputs: list[Inputs] = [{} for _ in range(int(facts["number"]))]
        for key in file.keys():
            index, name = key.split("/", 1)
            inputs[int(index)][name] = file.get_tensor(key)
    return inputs, [(start, stop) for start, stop in json.loads(facts["spans"])]
