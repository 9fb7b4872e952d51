"""Exports a quantized model: collects all that a format cannot hold, then writes the whole folder or nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel

from ...config import QUANT_METHOD
from ...utils.errors import SettingError
from ...utils.files import UNFINISHED, require_writable
from ...utils.quote import quote
from ...utils.suggestion import did_you_mean
from . import awq, compressed_tensors, gguf, gptq, mlx
from .card import write_card
from .refusals import Refusal, raise_all
from .saved_model import SavedModel
from .writer import copy_beside


class Format(Protocol):
    """What a module of a format holds."""

    NAME: str
    ENGINES: tuple[str, ...]

    def refusals(self, saved: SavedModel, engine: str) -> Iterator[Refusal]:
        """Yields all that the format or the engine cannot hold."""
        ...

    def notes(self, saved: SavedModel, engine: str) -> Iterator[str]:
        """Yields what a user of the export should know."""
        ...

    def write(self, saved: SavedModel, folder: Path) -> None:
        """Writes the weights and their configuration into an empty folder."""
        ...


FORMATS: dict[str, Format] = {module.NAME: module for module in (compressed_tensors, mlx, gguf, awq, gptq)}
"""Name → what writes it."""


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        folder: where it is.
        format: its name.
        notes: what its user should know.
    """

    folder: Path
    format: str
    notes: tuple[str, ...]


def export(
    model: PreTrainedModel | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str,
    engine: str | None = None,
) -> Export:
    """Writes a quantized model in the format of another library. No weight is quantized again.

    Args:
        model: a folder that `save_pretrained` wrote, or a quantized model in memory.
        out: a folder to write; must be new or empty.
        format: `"compressed-tensors"`, `"mlx"`, `"gguf"`, `"awq"` or `"gptq"`.
        engine: which of the format's readers must be able to read it, such as `"vllm"`; by default the first of the
            format's `ENGINES`.

    Returns:
        where it is, and what to know about it.

    Raises:
        ExportError: the format or the engine cannot hold the model; the message has all reasons. Nothing was written.
        SettingError: an argument is wrong. Nothing was written.
        ValueError: the model is damaged.
    """
    writer = _format(format)
    engine = _engine(writer, engine)
    target = _new_folder(out)
    with _folder_of(model, target) as source:
        if target.resolve() in (source.resolve(), *source.resolve().parents):
            raise SettingError(f"OUT, {target}, is MODEL or holds it. Give another folder.")
        saved = SavedModel(source)
        raise_all(writer.refusals(saved, engine), f"{format}, for {engine},")
        notes = tuple(writer.notes(saved, engine))
        readers = [each for each in writer.ENGINES if each == engine or not any(writer.refusals(saved, each))]
        with _whole(target) as folder:
            copy_beside(source, folder)
            writer.write(saved, folder)
            write_card(saved, folder, format, readers, notes)
    return Export(target, format, notes)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise SettingError(f"`format` must be one of {list(FORMATS)}, got {quote(name)}.{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def _engine(writer: Format, engine: str | None) -> str:
    engines = writer.ENGINES
    if engine is not None and engine not in engines:
        raise SettingError(f"`engine` must be one of {list(engines)} for {writer.NAME}, got {quote(engine)}.")
    return engine or engines[0]


def _new_folder(out: str | os.PathLike[str]) -> Path:
    target = Path(out).expanduser()
    if os.path.lexists(target) and not target.is_dir():
        kind = "a file" if target.exists() else "a link to nothing"
        raise SettingError(f"OUT must be a folder, and {target} is {kind}.")
    if target.is_dir() and any(target.iterdir()):
        raise SettingError(f"{target} is not empty. Give a new folder.")
    return target


@contextmanager
def _folder_of(model: PreTrainedModel | str | os.PathLike[str], target: Path) -> Iterator[Path]:
    """Yields the model's folder; one in memory is first saved beside the output, for this context."""
    if isinstance(model, (str, os.PathLike)):
        yield Path(model).expanduser()
        return
    method = getattr(getattr(model, "config", None), "quantization_config", None)
    name = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", None)
    if not isinstance(model, PreTrainedModel) or name != QUANT_METHOD:
        raise SettingError(
            f"`model` must be a folder or a model that transformers-qaig quantized, got a {type(model).__name__}."
        )
    folder = _beside(target, "model")
    try:
        model.save_pretrained(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Yields a folder beside `target` that becomes `target` at the end of the context; after an error it is removed."""
    folder = _beside(target, "export")
    try:
        yield folder
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(target: Path, what: str) -> Path:
    try:
        require_writable(target.parent, "OUT")
    except ValueError as error:
        raise SettingError(str(error)) from error
    folder = target.parent / f"{UNFINISHED}{secrets.token_hex(6)}-{what}"
    folder.mkdir()
    return folder
