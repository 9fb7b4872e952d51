"""Writes one GGUF file: first what every tensor will be, then their bytes, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from torch import Tensor

from ..saved_model import PackedWeight, SavedModel
from .blocks import BLOCK, BYTES, blocks, type_of

_TYPES = {
    "F32": (GGMLQuantizationType.F32, torch.float32),
    "F16": (GGMLQuantizationType.F16, torch.float16),
    "BF16": (GGMLQuantizationType.BF16, torch.bfloat16),
}


class GGUFFile:
    """Collects tensors by name, and writes them when it is finished.

    Args:
        saved: the model that the tensors come from.
        file: to write.
        arch: llama.cpp's name of the architecture.
    """

    def __init__(self, saved: SavedModel, file: Path, arch: str) -> None:
        self.settings = GGUFWriter(None, arch)
        """Takes the settings, by its methods."""
        self._saved, self._path = saved, file
        self._data: list[Callable[[], NDArray[np.uint8]]] = []

    def add_packed(self, name: str, packed: PackedWeight, rows: Tensor | None = None) -> None:
        """Adds a packed weight; `rows` is the order of its rows."""
        kind = type_of(packed)
        shape = packed.out_features, packed.in_features // BLOCK * BYTES[kind]
        self._add(name, shape, kind, lambda: blocks(self._saved, packed, rows))

    def add_unpacked(self, name: str, model_name: str, rows: Tensor | None = None) -> None:
        """Adds a tensor in full precision: a matrix in its own dtype, any other in float32, as llama.cpp takes them.

        Args:
            name: in the GGUF file.
            model_name: in the model.
            rows: the order of its rows.
        """
        stored = self._saved.stored[model_name]
        kind, dtype = _TYPES[stored.dtype if len(stored.shape) == 2 and "position_embd" not in name else "F32"]
        shape = (*stored.shape[:-1], stored.shape[-1] * dtype.itemsize)

        def read() -> NDArray[np.uint8]:
            tensor = self._saved.tensor(model_name)
            tensor = tensor if rows is None else tensor[rows]
            return tensor.to(dtype).contiguous().view(torch.uint8).numpy()

        self._add(name, shape, kind, read)

    def _add(
        self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, read: Callable[[], NDArray[np.uint8]]
    ) -> None:
        self.settings.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
        self._data.append(read)

    def finish(self) -> None:
        """Writes the file."""
        writer = self.settings
        writer.write_header_to_file(self._path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for read in self._data:
            writer.write_tensor_data(read())
        writer.close()
