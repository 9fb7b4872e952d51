"""Writes safetensors shards of bounded size into a folder, and the files beside a model's weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...loading.source import PROCESSOR_FILES
from ...utils.files import open_to_umask

LARGEST_SHARD = 4 << 30
"""Bytes of tensors that are held in memory and written into one file."""
BESIDE = (*PROCESSOR_FILES, "generation_config.json", "LICENSE*", "NOTICE*")
"""Patterns of the files that an export copies as they are."""


class ShardWriter:
    """Collects tensors, and writes a file whenever they are large enough. Nothing else may write into the folder.

    Args:
        folder: exists.
        metadata: of every file's header.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, str] | None = None) -> None:
        self._folder, self._metadata = folder, {"format": "pt", **(metadata or {})}
        self._held: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._bytes = self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Adds a tensor.

        Raises:
            ValueError: a tensor of that name was added before.
        """
        if name in self._held or any(name in shard for shard in self._shards):
            raise ValueError(f"two tensors of the model would be called {name} in the export")
        size = tensor.numel() * tensor.element_size()
        if self._held and self._bytes + size > LARGEST_SHARD:
            self._flush()
        self._held[name] = tensor.contiguous()
        self._bytes += size
        self._total += size

    def finish(self) -> None:
        """Writes what is held, gives the files their names, and writes an index if there are several."""
        self._flush()
        count = len(self._shards)
        names = (
            [SAFE_WEIGHTS_NAME] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        )
        for number, name in enumerate(names):
            self._file(number).replace(self._folder / name)
        if count > 1:
            weight_map = {key: name for name, keys in zip(names, self._shards) for key in keys}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            write_json(self._folder / SAFE_WEIGHTS_INDEX_NAME, index)

    def _flush(self) -> None:
        if self._held:
            save_file(self._held, file := self._file(len(self._shards)), metadata=self._metadata)
            open_to_umask(file)
            self._shards.append(list(self._held))
            self._held, self._bytes = {}, 0

    def _file(self, number: int) -> Path:
        return self._folder / f"shard-{number}"


def copy_beside(source: Path, folder: Path) -> None:
    """Copies processor, chat template, generation settings and licence; regular files only."""
    for pattern in BESIDE:
        for file in source.glob(pattern):
            if file.is_file() and file.suffix not in (".bin", ".pt", ".pth", ".pkl", ".safetensors"):
                target = folder / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def write_json(file: Path, value: Any) -> None:
    """Writes JSON as config.json is written."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def model_config(config: Mapping[str, Any], quantization: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a config.json whose quantization settings are replaced.

    Args:
        config: of the quantized model; its text config is marked as packed, too.
        quantization: new settings; None for none.
    """
    made = dict(config)
    for name, part in config.items():
        if isinstance(part, dict) and "quantization_config" in part:
            made[name] = {key: value for key, value in part.items() if key != "quantization_config"}
    made.pop("quantization_config")
    return made if quantization is None else {**made, "quantization_config": dict(quantization)}
