"""Everything that may hold records gives them one by one; a record that cannot be read is named."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.families import build
from transformers_qaig.data.model_inputs import ModelInputs
from transformers_qaig.data.samples import load_samples
from transformers_qaig.data.sources import open_records

RECORDS = [{"question": f"what is {i} ?", "answer": str(i)} for i in range(3)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build("llava")[1].tokenizer


def texts(dataset: Any, tokenizer: Any) -> list[str]:
    samples = load_samples(dataset, tokenizer, num_samples=3, seed=0, inputs=ModelInputs(has_images=False))
    return [tokenizer.decode(sample["input_ids"][0]) for sample in samples]


class Map(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, str]:
        return RECORDS[index]


class Stream(torch.utils.data.IterableDataset):
    def __len__(self) -> int:  # has a length, and no items
        return 3

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(RECORDS)


def test_every_holder_of_records_gives_the_same(tokenizer: Any) -> None:
    want = texts(RECORDS, tokenizer)
    frame = pandas.DataFrame(RECORDS, index=[7, 3, 5])
    table = datasets.Dataset.from_list(RECORDS)
    holders = [
        tuple(RECORDS),
        (record for record in RECORDS),
        Map(),
        Stream(),
        DataLoader(Map(), batch_size=None),
        frame,
        pandas.Series(RECORDS, index=[7, 3, 5]),
        table,
        table.to_iterable_dataset(),
        table.data.table,
        datasets.DatasetDict(train=table, test=table.select([0])),
        datasets.DatasetDict(test=table),
    ]
    for holder in holders:
        assert texts(holder, tokenizer) == want, type(holder)


def test_what_a_frame_misses_is_none(tokenizer: Any) -> None:
    frame = pandas.DataFrame([{"question": "what ?", "answer": "a"}, {"question": "what ?"}])
    assert "nan" not in "".join(texts(frame, tokenizer))


def test_the_split_that_is_taken_is_said(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    table = datasets.Dataset.from_list(RECORDS)
    with caplog.at_level(logging.WARNING, "transformers.qaig"):
        texts(datasets.DatasetDict(train=table, test=table), tokenizer)
    assert "of the splits ['test', 'train'], 'train' is taken" in caplog.text
    with pytest.raises(TypeError, match=r"\['dev', 'test'\] and no 'train'"):
        texts(datasets.DatasetDict(dev=table, test=table), tokenizer)


def test_a_batch_of_raw_records_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"sample 0 .*is it a batch"):
        texts(DataLoader(Map(), batch_size=3), tokenizer)


def test_image_columns_of_datasets(tmp_path: Path) -> None:
    processor = build("llava")[1]
    Image.new("RGB", (28, 28), "red").save(tmp_path / "cat.png")
    rows = {"images": [[str(tmp_path / "cat.png")] * 2], "question": ["what ?"], "answer": ["a cat"]}
    pixels = []
    for feature in (datasets.Image(), datasets.Image(decode=False)):
        table = datasets.Dataset.from_dict(rows).cast_column("images", datasets.Sequence(feature))
        pixels += [sample["pixel_values"] for sample in load_samples(table, processor, num_samples=1, seed=0)]
    assert pixels[0].shape[0] == 2
    assert torch.equal(*pixels)


def test_a_record_that_the_data_set_cannot_decode_is_named(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (28, 28)).save(tmp_path / "good.png")
    rows = {"image": [str(tmp_path / f"{name}.png") for name in ("good", "bad")], "question": ["what ?"] * 2}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    for dataset in (table, table.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"sample 1 of the dataset cannot be read \("):
            load_samples(dataset, build("llava")[1], num_samples=2, seed=0)


def test_a_generator_that_raises_names_the_record(tokenizer: Any) -> None:
    def records() -> Iterator[Any]:
        yield RECORDS[0]
        raise KeyError("lost")

    with pytest.raises(ValueError, match=r"sample 1 of the dataset cannot be read .*KeyError: 'lost'"):
        texts(records(), tokenizer)


def test_files_of_records(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    line = json.dumps({"question": "what\u2028now ?"}, ensure_ascii=False)  # a line break to str.splitlines
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\n{line}".encode())
    assert open_records(str(path), False, None)[0] == [{"question": "what\u2028now ?"}] * 2
    path.write_text(f"{line}\n{{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"set\.jsonl cannot be read: line 2: "):
        open_records(str(path), False, None)
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(ValueError, match=r"cannot be read: .*fifo\.json is a FIFO"):
        open_records(str(tmp_path / "fifo.json"), False, None)
