"""Samples and questions as files of tensors, for processes in other environments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Inputs = dict[str, Tensor]


Spans = list[tuple[int, int]]
"""(start, stop) of every answer of one sample or question."""


def write_inputs(path: Path, inputs: Sequence[Inputs], answers: Sequence[Spans]) -> None:
    """
    Args:
        path: file to write.
        inputs: a model's inputs, batch size 1 each.
        answers: where the answers of each one are.
    """
    tensors = {f"{i}/{name}": value.contiguous() for i, one in enumerate(inputs) for name, value in one.items()}
    save_file(tensors, path, {"answers": json.dumps(answers)})


def read_inputs(path: str | Path) -> tuple[list[Inputs], list[Spans]]:
    """What `write_inputs` wrote."""
    with safe_open(path, "pt") as file:
        answers = [[(start, stop) for start, stop in spans] for spans in json.loads(file.metadata()["answers"])]
        inputs: list[Inputs] = [{} for _ in answers]
        for key in file.keys():
            index, name = key.split("/", 1)
            inputs[int(index)][name] = file.get_tensor(key)
    return inputs, answers
