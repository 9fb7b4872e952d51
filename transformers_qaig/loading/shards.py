"""The safetensors files of a checkpoint: which ones are read, and what their headers say. No weight is read here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..utils.errors import reason
from ..utils.json_file import read_json
from ..utils.quote import quote

DTYPES = {
    "I32": torch.int32, "I64": torch.int64,
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
"""A header's word → dtype, of those that this package reads."""
LARGEST_INDEX = 256 << 20
"""The most bytes of an index.json: room for two million tensors."""


class StoredTensor(NamedTuple):
    """A tensor in a shard, as its header describes it.

    Attributes:
        key: its name in the file.
        shape: its shape.
        dtype: its type in the words of safetensors, such as `"BF16"`.
        file: the file's name, without its folder.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    file: str


def check_index(arguments: Mapping[str, Any], with_files: bool = False) -> None:
    """Checks the index of a folder's shards. Transformers reads it next, and its errors do not name the file.

    A save that is killed leaves an empty index or a cut one.

    Args:
        arguments: of the running `from_pretrained`, from [`loading_arguments`].
        with_files: whether to look at the files that it names; [`check_files`] does so for a packed model.

    Raises:
        ValueError: naming an index that cannot be read, or that does not list the shards.
    """
    index = _index_of(arguments)
    if index is None:
        return
    try:
        found = read_json(index, LARGEST_INDEX, last_counts=True)
        problem = _misses(found) or (_bad_file(found["weight_map"], _folder_of(arguments)) if with_files else "")
    except (OSError, ValueError) as error:
        problem = reason(error)
    if problem:
        raise ValueError(
            f"{index} lists the model's shards and is damaged ({problem}): a save or a download did not come to its "
            "end. Save or download the model again."
        )


def _index_of(arguments: Mapping[str, Any]) -> Path | None:
    """Returns the index that a folder is loaded by; None for one file, or a model on the Hub."""
    name = arguments.get("pretrained_model_name_or_path")
    if name is None or not os.path.isdir(name) or arguments.get("use_safetensors") is False:
        return None
    folder, variant = _folder_of(arguments), arguments.get("variant")
    whole, index = (_with_variant(file, variant) for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    named = getattr(arguments.get("config"), "transformers_weights", None)  # which comes before both
    file = folder / (named or index)
    is_read = str(file).endswith(".index.json") if named else not (folder / whole).is_file()
    return file if is_read and file.is_file() else None


def _folder_of(arguments: Mapping[str, Any]) -> Path:
    """Returns the folder that the names in an index start from."""
    return Path(arguments["pretrained_model_name_or_path"], arguments.get("subfolder") or "")


def _with_variant(file: str, variant: str | None) -> str:
    """Returns `model.safetensors.index.fp16.json` for the variant `fp16`, as Transformers does."""
    name, _, ending = file.rpartition(".")
    return file if variant is None else f"{name}.{variant}.{ending}"


def _misses(index: Any) -> str:
    """Returns what an index lacks of all that Transformers reads in it; empty if nothing."""
    if not isinstance(index, dict):
        return "it holds no JSON object"
    for name in ("weight_map", "metadata"):
        if not isinstance(index.get(name), dict):
            return f"it has no object `{name}`"
    if not index["weight_map"]:
        return "its `weight_map` is empty"
    for key, file in index["weight_map"].items():
        if not isinstance(file, str):
            return f"`weight_map` names {quote(file)} as a file for {quote(key)}"
    return ""


def _bad_file(weight_map: Mapping[str, str], folder: Path) -> str:
    """Returns which entry names what Transformers cannot load; empty if none does."""
    for file, key in {file: key for key, file in weight_map.items()}.items():
        if problem := _cannot_load(os.path.join(folder, file)):
            return f"`weight_map` names {quote(file)} for {quote(key)}, which {problem}"
    return ""


def _cannot_load(path: str) -> str:
    if not os.path.isfile(path):
        return "is no regular file" if os.path.exists(path) else "is missing"
    try:
        with safe_open(path, "pt"):
            return ""
    except (SafetensorError, OSError) as error:
        return "" if _is_pickled(path) else f"cannot be read: {reason(error)}"


def _is_pickled(path: str) -> bool:
    """Whether a file starts as `torch.save` writes it. Transformers loads such files from any index."""
    if path.endswith(".safetensors"):
        return False
    with suppress(OSError), open(path, "rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))  # a zip file, or the pickles of old
    return False


def check_files(files: Sequence[str], folder: str) -> None:
    """Checks that every shard is a safetensors file in the checkpoint's own folder.

    Args:
        files: paths of the shards; an index.json, which anybody may have written, names them.
        folder: the checkpoint's folder; for a model on the Hub its name, and the Hub's client checked the paths.

    Raises:
        ValueError: naming a file that is missing, no regular file, outside of the folder, or cannot be read.
    """
    for file in files:
        if problem := _problem(str(file), folder):
            raise ValueError(problem + _tensors_of(str(file), files))
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read, download or save it again: {error}") from error


def _tensors_of(file: str, files: Sequence[str]) -> str:
    """Returns which tensors an index looks for in a file."""
    for index, where in _indexes(files):
        for name, keys in where.items():
            if os.path.abspath(index.parent / name) == os.path.abspath(file):
                return f" {index.name} names it for {quote(keys[0])} (and {len(keys) - 1} more)."
    return ""


def _problem(file: str, folder: str) -> str:
    inside = os.path.join(os.path.abspath(folder), "")  # links are not followed: the Hub's cache is made of them
    if os.path.isdir(folder) and not os.path.abspath(file).startswith(inside):
        return f"The shard {quote(file)} is outside of {folder}: the checkpoint's index is damaged."
    if not os.path.exists(file):
        return f"The shard {quote(file)} is missing: download the checkpoint or save it again."
    if not os.path.isfile(file):
        return f"The shard {quote(file)} is no regular file."
    if not file.endswith(".safetensors"):
        return f"A quantized checkpoint is stored as safetensors, and {quote(file)} is not."
    return ""


def read_headers(
    files: Sequence[str], name_of: Callable[[str], str], merges: Callable[[str], bool]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Reads the headers of all shards together.

    Args:
        files: paths of the shards, which [`check_files`] has seen.
        name_of: name in the file → name in the model.
        merges: whether the loader makes one tensor of a stored one and of others.

    Returns:
        name in the model → what is stored, and a sentence for each thing that the files say in two ways.
    """
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    held: dict[str, set[str]] = {}
    for path in files:
        file = os.path.basename(path)
        with safe_open(path, "pt") as stored:
            held[file] = set(stored.keys())
            for key in sorted(held[file]):
                header = stored.get_slice(key)
                tensor = StoredTensor(key, tuple(header.get_shape()), header.get_dtype(), file)
                name = name_of(key)
                other = tensors.setdefault(name, tensor)
                if other is not tensor and (other.key == key or not merges(key)):
                    problems.append(_twice(name, other, tensor))
    return tensors, problems + _index_problems(files, held)


def _twice(name: str, one: StoredTensor, other: StoredTensor) -> str:
    if one.key == other.key:
        return f"{name} is stored twice: in {one.file} and in {other.file}"
    return f"{name} is stored twice: as {one.key} in {one.file} and as {other.key} in {other.file}"


def _index_problems(files: Sequence[str], held: Mapping[str, set[str]]) -> list[str]:
    """Lists what an index beside the shards says of them that is not true."""
    for index, where in _indexes(files):
        names = {os.path.basename(file): keys for file, keys in where.items()}
        if set(names) == set(held):
            return [
                f"{index.name} has {key} in {file}, which lacks it"
                for file, keys in names.items()
                for key in keys
                if key not in held[file]
            ]
    return []


def _indexes(files: Sequence[str]) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """Yields every index in a folder of the shards: its path, and file → tensors."""
    for folder in sorted({os.path.dirname(file) for file in files}):
        for index in sorted(Path(folder).glob("*.safetensors.index*.json")):
            where: dict[str, list[str]] = {}
            try:
                for key, file in read_json(index, LARGEST_INDEX, last_counts=True)["weight_map"].items():
                    where.setdefault(str(file), []).append(key)
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue  # Transformers has read the one that counts
            yield index, where
