"""Every form of a dataset, and every way in which it can be wrong."""

import builtins
import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from PIL import Image

from tests.data.loading import conversation, one, same
from transformers_qaig.data.samples import load_samples
from transformers_qaig.data.sources import open_records


def test_hugging_face_sets(processor: Any, picture: Image.Image) -> None:
    rows = {"image": [picture] * 6, "question": ["how many cats are there ?"] * 6, "answer": list("012345")}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    whole = load_samples(dataset, processor, num_samples=6, seed=0)
    assert [int(sample["input_ids"][0, -2]) for sample in whole] == [
        int(one([conversation(picture, answer=digit)], processor)["input_ids"][0, -2]) for digit in "012345"
    ]
    stream = load_samples(dataset.to_iterable_dataset(), processor, num_samples=6, seed=0)
    assert all(same(a, b) for a, b in zip(whole, stream, strict=True))
    assert len(load_samples(dataset.to_iterable_dataset(), processor, num_samples=2, seed=0)) == 2


def test_a_name_is_streamed_from_the_hub(processor: Any, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return iter([conversation(picture)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("org/name", "org/name:test", "org/name:chart:validation"):
        load_samples(name, processor, num_samples=1, seed=0, token="secret")
    assert calls == [
        (("org/name",), {"split": None, "streaming": True, "token": "secret"}),
        (("org/name",), {"split": "test", "streaming": True, "token": "secret"}),
        (("org/name", "chart"), {"split": "validation", "streaming": True, "token": "secret"}),
    ]


def test_a_name_that_cannot_be_loaded_says_what_to_do(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"org/name.*no network.*bundled default set"):
        one("org/name", processor)


def test_a_name_without_a_split_to_take_says_which_there_are(processor: Any, tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (tmp_path / f"{split}.csv").write_text("question,answer\nwhat ?,2\n")
    with pytest.raises(ValueError, match=rf"dataset='{tmp_path}': .*'name:split'"):
        one(str(tmp_path), processor)
    one(f"{tmp_path}:test", processor)


def test_datasets_is_asked_for_only_when_needed(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    one(None, processor)
    with pytest.raises(ImportError, match="pip install datasets"):
        one("org/name", processor)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_a_file_with_paths_beside_it(processor: Any, picture: Image.Image, tmp_path: Path, suffix: str) -> None:
    picture.save(tmp_path / "cat.png")
    record = {"image": "cat.png", "question": "how many cats are there ?", "answer": "2"}
    path = tmp_path / f"of:today{suffix}"
    if suffix == ".csv":
        pandas.DataFrame([record]).to_csv(path, index=False)
    elif suffix == ".parquet":
        pandas.DataFrame([record]).to_parquet(path)
    else:
        path.write_text(json.dumps(record) + "\n" if suffix == ".jsonl" else json.dumps([record]), encoding="utf-8")
    assert same(one(str(path), processor), one([conversation(picture)], processor))


def test_cells_of_a_csv_file_are_read_as_they_are_written(tmp_path: Path) -> None:
    written = [{"question": "q", "answer": answer} for answer in ("07", "12", "None", "N/A", "1e3", "True", " x")]
    pandas.DataFrame(written).to_csv(tmp_path / "x.csv", index=False)
    (tmp_path / "gap.csv").write_text("question,answer\nq,\n")
    assert list(open_records(str(tmp_path / "x.csv"), False, None)[0]) == written
    assert list(open_records(str(tmp_path / "gap.csv"), False, None)[0]) == [{"question": "q", "answer": None}]


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ([], ValueError, "the dataset is empty"),
        (7, TypeError, "not int"),
        ({"input_ids": torch.ones(1, 3)}, TypeError, r"pass \[it\]"),
        ({"train": [], "test": []}, TypeError, "one split"),
        ([{"role": "user", "content": "hello"}], TypeError, "single conversation"),
        ([[]], ValueError, "sample 0 .*not empty"),
        ([[{"role": "user"}]], ValueError, "sample 0 .*needs 'role' and 'content'"),
        ([[{"role": "user", "content": [{"type": "audio"}]}]], ValueError, "sample 0 .*'audio'"),
        ([{"foo": 1}], ValueError, r"sample 0 .*columns="),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}],
            ValueError,
            "1 image placeholders .* 0 images",
        ),
        ([3.5], ValueError, "sample 0 .*not float"),
        (
            "nowhere/data.jsonl",
            ValueError,
            r"cannot be read: the file nowhere/data\.jsonl cannot be opened \(No such file",
        ),
        (Path("nowhere/data.jsonl"), ValueError, r"the file nowhere/data\.jsonl cannot be opened"),
        (__file__, ValueError, r"is a file of another kind than \.json, .* and \.csv: open it, as with pandas"),
        ([{"foto": "x", "frage": "y"}], ValueError, r"CalibrationConfig\(columns="),
        ("./nowhere", ValueError, r"dataset='\./nowhere' cannot be loaded: there is no file or folder of this name"),
    ],
)
def test_bad_datasets(processor: Any, dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        one(dataset, processor)
