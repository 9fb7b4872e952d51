"""Opens whatever holds calibration records (a list, a stream, a table, a file, a name on the Hub)."""

import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils.logging import get_logger
from .default_set import load_default_set
from .fetch import read_file

logger = get_logger(__name__)

STREAM_BUFFER = 4  # a stream is shuffled inside its first STREAM_BUFFER x num_samples records
MAX_FILE_BYTES = 4 << 30
TABLES = (".parquet", ".arrow", ".csv")


def open_records(
    dataset: Any, with_images: bool, token: str | bool | None, with_videos: bool = False
) -> tuple[Any, Path | None]:
    """Opens a dataset, and finds the folder that its relative image paths start from.

    Args:
        dataset: see [`transformers_qaig.data.samples.load_samples`].
        with_images: of the bundled set (`dataset=None`).
        token: for a gated set on the Hub.
        with_videos: of the bundled set.

    Returns:
        the records, and the folder; None for the working directory.

    Raises:
        TypeError: `dataset` is nothing that holds records.
        ValueError: its file or its name cannot be read.
        ImportError: it is a name, and `datasets` is not installed.
    """
    if isinstance(dataset, os.PathLike):
        dataset = os.fspath(dataset)
    if dataset is None:
        return load_default_set(with_images, with_videos), None
    if isinstance(dataset, str) and dataset.endswith((".json", ".jsonl")):
        path = Path(dataset).expanduser()
        return _read_json(path), path.parent
    if isinstance(dataset, str):
        file = Path(dataset).expanduser()
        return _load_from_hub(dataset, token), file.parent if file.is_file() else None
    dataset = _rows_of_table(_split_of(dataset))
    if isinstance(dataset, Mapping):
        keys = ", ".join(repr(key) for key in list(dataset)[:5])
        what = "one sample: pass [it]" if "input_ids" in dataset or "messages" in dataset else "not a list of samples"
        raise TypeError(
            f"dataset is a dict with {keys}: {what} (of a dict of splits pass one split, ds['train']; columns "
            "become records with datasets.Dataset.from_dict)"
        )
    if isinstance(dataset, (bytes, bytearray)) or not (
        isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__")
    ):
        raise TypeError(
            f"dataset must be None, a list of conversations, a `datasets` set or its name, or processor outputs, "
            f"not {type(dataset).__name__}"
        )
    if isinstance(dataset, (list, tuple)) and dataset and isinstance(dataset[0], Mapping) and "role" in dataset[0]:
        raise TypeError("dataset is a single conversation (a list of messages): pass a list of them, [conversation]")
    return dataset, None


def choose_records(records: Any, num_samples: int, seed: int, keep_rest: bool) -> Iterator[tuple[int, Any]]:
    """Yields the records to use, each with its index: all in their order if they are few, else a choice by `seed`.

    With `keep_rest` the others follow, for the caller to replace samples that it must leave out.

    Raises:
        ValueError: a record cannot be read; the message has its index.
    """
    if isinstance(records, torch.utils.data.IterableDataset) or not (
        hasattr(records, "__len__") and hasattr(records, "__getitem__")
    ):
        records = list(islice(_numbered_errors(records), STREAM_BUFFER * num_samples))
    order = list(range(len(records)))
    if len(order) > num_samples:
        random.Random(seed).shuffle(order)
        order = order if keep_rest else order[:num_samples]
    for index in order:
        try:
            record = records[index]
        except Exception as error:  # a data set decodes what it reads, and raises every kind
            raise _unreadable(index, error) from error
        yield index, record


def _numbered_errors(stream: Iterable[Any]) -> Iterator[Any]:
    index = 0
    try:
        for record in stream:
            yield record
            index += 1
    except Exception as error:
        raise _unreadable(index, error) from error


def _unreadable(index: int, error: Exception) -> ValueError:
    return ValueError(
        f"sample {index} of the dataset cannot be read ({type(error).__name__}: {error}). Remove or mend this sample"
    )


def _split_of(dataset: Any) -> Any:
    """Returns one split of a `DatasetDict`: the only one, else `train`."""
    if not isinstance(dataset, Mapping) or not dataset or not all(hasattr(d, "features") for d in dataset.values()):
        return dataset
    name = next(iter(dataset)) if len(dataset) == 1 else "train"
    if name not in dataset:
        known = sorted(map(str, dataset))
        raise TypeError(f"dataset has the splits {known} and no 'train': pass one, ds['...'] or 'name:split'")
    if len(dataset) > 1:
        logger.warning("dataset: of the splits %s, %r is taken", sorted(map(str, dataset)), name)
    return dataset[name]


def _rows_of_table(dataset: Any) -> Any:
    """Returns the rows of a pandas, polars or Arrow table; iterating over it gives column names or whole columns."""
    if hasattr(dataset, "iloc") and hasattr(dataset, "columns"):
        return [_plain(row) for row in dataset.to_dict(orient="records")]
    for rows in ("to_dicts", "to_pylist"):
        if hasattr(dataset, "columns") and hasattr(dataset, rows):
            return getattr(dataset, rows)()
    if hasattr(dataset, "iloc"):  # a pandas series, whose index may be anything
        return [_plain(value) for value in dataset.tolist()]
    return dataset


def _plain(value: Any) -> Any:
    """Converts a value to Python's own types: pandas holds lists as arrays of objects, and gaps as NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _read_json(path: Path) -> list[Any]:
    try:
        raw = read_file(path, max_bytes=MAX_FILE_BYTES)
    except ValueError as error:  # it names the file
        raise ValueError(f"the data file cannot be read: {error}") from error
    try:
        text = raw.decode("utf-8-sig")
        records = _read_lines(text) if path.suffix == ".jsonl" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the data file {path} cannot be read: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"the data file {path} must hold a list of samples, not a {type(records).__name__}")
    return records


def _read_lines(text: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would cut at U+2028 inside a string, too
        try:
            records += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
    return records


def is_data_folder(folder: Path) -> bool:
    """Whether a folder holds what the `datasets` library reads: a saved set, tables, or pictures with metadata."""
    names = [file.name for file in folder.iterdir()]
    return _is_saved_set(folder) or any(name.endswith(TABLES) or name == "metadata.jsonl" for name in names)


def _is_saved_set(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _as_written(file: Path) -> dict[str, Any]:
    """Returns options by which cells of a CSV file stay text: pandas would read 07 as 7, and None as a gap."""
    import pandas  # comes with `datasets`

    names = pandas.read_csv(file, nrows=0).columns
    return {"keep_default_na": False, "converters": dict.fromkeys(names, _text_or_gap)}


def _text_or_gap(cell: str) -> str | None:
    return cell or None


def _load_from_hub(name: str, token: str | bool | None) -> Any:
    file = Path(name).expanduser()
    if file.is_file() and file.suffix not in TABLES:
        raise ValueError(
            f"dataset={name!r} is a file of another kind than .json, .jsonl, .parquet, .arrow and .csv: open it, as "
            "with pandas.read_excel, and pass what that returns"
        )
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError as error:
        where = ", here a folder" if Path(name).expanduser().is_dir() else ""
        raise ImportError(
            f"dataset={name!r} names a set of the `datasets` library, which is not installed{where}: `pip install "
            "datasets`, give a .json or .jsonl file, or leave dataset out to use the bundled default set"
        ) from error
    path, *rest = [name] if file.is_file() else name.split(":")
    options = {"split": rest.pop() if rest else None, "streaming": True, "token": token}
    try:
        if file.is_file():
            options |= _as_written(file) if file.suffix == ".csv" else {}
            found = load_dataset(file.suffix[1:], data_files=str(file), **options)
        elif Path(path).is_dir() and _is_saved_set(Path(path)):
            found = load_from_disk(path)
        else:
            found = load_dataset(path, *rest, **options)
    except Exception as error:  # the library raises many kinds: connection, missing set, unknown split, scripts
        here = "" if Path(name).exists() else "there is no file or folder of this name, and "
        raise ValueError(
            f"dataset={name!r} cannot be loaded: {here}the `datasets` library says {type(error).__name__}: {error}. "
            "A name on the Hub is written 'org/name', 'org/name:split' or 'org/name:config:split'. Without a "
            "connection pass a list of conversations, or leave dataset out to use the bundled default set"
        ) from error
    try:
        return _split_of(found)
    except TypeError as error:
        raise ValueError(f"dataset={name!r}: {error}") from error
