"""Calibration data: whatever the user has -> a list of model inputs."""

import json
import logging
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from .default_set import load_default_set
from .encode import answer_mask, as_tensors, encode, has_image, preview, token_mask
from .exclusions import Sample
from .images import shrink
from .messages import Conversation, find_columns, to_conversation

__all__ = ["answer_mask", "are_encoded", "load_samples", "token_mask"]

logger = logging.getLogger("transformers_qaig")

STREAM_BUFFER = 4  # a stream is shuffled inside its first STREAM_BUFFER x num_samples records


def load_samples(
    dataset: Any,
    processor: Any,
    *,
    num_samples: int,
    seed: int,
    is_vlm: bool = True,
    columns: Mapping[str, str] | None = None,
    max_pixels: int | None = None,
    max_length: int | None = None,
    token: str | bool | None = None,
    with_labels: bool = False,
) -> list[Sample]:
    """
    Loads calibration samples as the model's inputs.

    Args:
        dataset: one of

            - `None`: the bundled default set (image + text, works offline);
            - conversations: each a list of chat messages, a dict `{"messages": ..., "images": ...}` or a dict like
              `{"image": ..., "question": ..., "answer": ...}`; images are PIL images, paths, URLs, `data:` URLs or
              arrays. A list, any sequence, any iterable (consumed once), a `datasets.Dataset` or `IterableDataset`;
            - processor outputs: dicts with `input_ids`; padded batches keep their `attention_mask`;
            - a `str`: a `.json`/`.jsonl` file of such records, or a set on the Hub: `"org/name"`,
              `"org/name:split"`, `"org/name:config:split"` (streamed; split `train` unless said).
        processor: the model's processor; None will do for processor outputs.
        num_samples: how many samples to keep. More are shuffled by `seed` and cut; fewer are all used.
        seed: seed of the choice and its order.
        is_vlm: whether the model takes images. If so, a set without a single image is warned about.
        columns: what the records call their `messages`, `image`, `prompt`, `response` (default: found by name).
        max_pixels: larger images are scaled down to this many pixels (memory grows with them).
        max_length: samples longer than this many tokens are left out; cutting would break the image tokens.
        token: for a gated set on the Hub.
        with_labels: mark the assistant's answers in `labels`. Processor outputs keep the labels they have.

    Returns:
        At most `num_samples` dicts of CPU tensors with the names that the model's forward takes.

    Raises:
        ValueError: no sample is left, or one cannot be used (the message has its index, the cause and what to do).
        TypeError: `dataset` is none of the forms above.
        ImportError: `dataset` names a Hub set and `datasets` is not installed.
    """
    for name, value in (("num_samples", num_samples), ("max_pixels", max_pixels), ("max_length", max_length)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, it is {value}")
    records, base_dir = _records(dataset, with_images=is_vlm, token=token)
    samples: list[Sample] = []
    left_out = 0
    for index, record in _chosen(records, num_samples, seed, keep_rest=max_length is not None):
        sample = _encode_record(index, record, processor, columns, base_dir, max_pixels, with_labels)
        if max_length is not None and sample["input_ids"].shape[1] > max_length:
            left_out += 1
            continue
        samples.append(Sample(sample, index))
        if len(samples) == num_samples:
            break
    _report(samples, processor, num_samples, left_out, max_length, is_vlm)
    return samples


def are_encoded(dataset: Any) -> bool:
    """Whether `dataset` is a list of processor outputs, which need no processor any more."""
    return isinstance(dataset, (list, tuple)) and all(_is_encoded(record) for record in dataset)


def _is_encoded(record: Any) -> bool:
    return isinstance(record, Mapping) and "input_ids" in record


def _records(dataset: Any, with_images: bool, token: str | bool | None) -> tuple[Any, Path | None]:
    """The records, and the folder that their relative image paths start from."""
    if dataset is None:
        return load_default_set(with_images), None
    if isinstance(dataset, str) and dataset.endswith((".json", ".jsonl")):
        path = Path(dataset).expanduser()
        return _read_json(path), path.parent
    if isinstance(dataset, str):
        return _load_from_hub(dataset, token), None
    if isinstance(dataset, Mapping):
        keys = ", ".join(repr(key) for key in list(dataset)[:5])
        what = "one sample: pass [it]" if "input_ids" in dataset or "messages" in dataset else "not a list of samples"
        raise TypeError(f"dataset is a dict with {keys}: {what} (of a `DatasetDict` pass one split, ds['train'])")
    if not isinstance(dataset, Iterable) and not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"dataset must be None, a list of conversations, a `datasets` set or its name, or processor outputs, "
            f"not {type(dataset).__name__}"
        )
    if isinstance(dataset, (list, tuple)) and dataset and isinstance(dataset[0], Mapping) and "role" in dataset[0]:
        raise TypeError("dataset is a single conversation (a list of messages): pass a list of them, [conversation]")
    return dataset, None


def _read_json(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            records = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"the calibration file {path} cannot be read: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"the calibration file {path} must hold a list of samples, not a {type(records).__name__}")
    return records


def _load_from_hub(name: str, token: str | bool | None) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"dataset={name!r} names a set of the `datasets` library, which is not installed: `pip install datasets`, "
            "or leave dataset out to use the bundled default set"
        ) from error
    path, *rest = name.split(":")
    split = rest.pop() if rest else "train"
    try:
        return load_dataset(path, *rest, split=split, streaming=True, token=token)
    except Exception as error:  # the library raises many kinds: connection, missing set, unknown split, scripts
        raise ValueError(
            f"dataset={name!r} cannot be loaded ({type(error).__name__}: {error}). The form is 'org/name', "
            "'org/name:split' or 'org/name:config:split'; without a connection pass a list of conversations, "
            "or leave dataset out to use the bundled default set"
        ) from error


def _chosen(records: Any, num_samples: int, seed: int, keep_rest: bool) -> Iterator[tuple[int, Any]]:
    """
    The records to use, each with its index: all in their order if they are few, else a choice by `seed`.

    With `keep_rest` the others follow, for the caller to replace samples that it must leave out.
    """
    if not (hasattr(records, "__len__") and hasattr(records, "__getitem__")):
        records = list(islice(iter(records), STREAM_BUFFER * num_samples))
    order = list(range(len(records)))
    if len(order) > num_samples:
        random.Random(seed).shuffle(order)
        order = order if keep_rest else order[:num_samples]
    for index in order:
        yield index, records[index]


def _encode_record(
    index: int,
    record: Any,
    processor: Any,
    columns: Mapping[str, str] | None,
    base_dir: Path | None,
    max_pixels: int | None,
    with_labels: bool,
) -> dict[str, torch.Tensor]:
    if _is_encoded(record):
        try:
            return as_tensors(record)
        except ValueError as error:
            raise ValueError(f"calibration sample {index}, a processor output, cannot be used: {error}") from error
    if columns is not None and isinstance(record, Mapping):
        find_columns(record, columns)  # a wrong column map is no fault of this sample: let it speak for itself
    try:
        conversation = to_conversation(record, columns, base_dir)
    except (ValueError, TypeError) as error:
        raise ValueError(f"calibration sample {index} is not usable: {error}") from error
    try:
        return encode(processor, _shrunk(conversation, max_pixels), with_labels=with_labels)
    except Exception as error:  # processors raise every kind
        raise ValueError(
            f"calibration sample {index} was refused by {type(processor).__name__} "
            f"({type(error).__name__}: {error}). Remove or mend this sample, check that the processor belongs to the "
            "model, or pass processor outputs as the dataset"
        ) from error


def _shrunk(conversation: Conversation, max_pixels: int | None) -> Conversation:
    for message in conversation:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = shrink(part["image"], max_pixels)
    return conversation


def _report(
    samples: Sequence[Sample],
    processor: Any,
    num_samples: int,
    left_out: int,
    max_length: int | None,
    is_vlm: bool,
) -> None:
    """Logs what was loaded, with one decoded sample; warns about a set that would harm the model."""
    if not samples:
        why = f"all {left_out} are longer than max_length={max_length} tokens" if left_out else "the dataset is empty"
        raise ValueError(f"no calibration sample: {why}")
    with_image = sum(has_image(sample) for sample in samples)
    tokens = sum(int(token_mask(sample).sum()) for sample in samples)
    short = f" ({num_samples} were asked for)" if len(samples) < num_samples else ""
    dropped = f", {left_out} left out as longer than {max_length} tokens" if left_out else ""
    logger.info(
        "calibration: %d samples%s, %d with an image, %d tokens%s", len(samples), short, with_image, tokens, dropped
    )
    logger.info("calibration sample: %s", preview(processor, samples[0]))
    if is_vlm and not with_image:
        warnings.warn(
            "The calibration data has no image. A vision-language model then never sees its vision tokens while it is "
            "quantized: their statistics, which differ from the text's, are missing, and answers about images get "
            "worse. Give image + text conversations, or leave dataset out to use the bundled default set.",
            UserWarning,
            stacklevel=3,
        )
