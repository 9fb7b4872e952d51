"""A name on the Hub is told from a path of this machine."""

from pathlib import Path

import pytest

from transformers_qaig.report.hub_names import dataset_id, repository_id


@pytest.mark.parametrize(
    ("name", "found"),
    [("org/name-7B.v2", "org/name-7B.v2"), ("name", None), ("/a/b", None), ("a/b/c", None), ("", None), (None, None)],
)
def test_an_owner_and_a_name_are_a_repository(name: str | None, found: str | None) -> None:
    assert repository_id(name) == found


def test_a_folder_that_exists_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repository_id("out/w3") == "out/w3"
    (tmp_path / "out" / "w3").mkdir(parents=True)
    assert repository_id("out/w3") is None


@pytest.mark.parametrize(
    ("dataset", "found"),
    [("org/name:test", "org/name"), ("data/chats.jsonl", None), ("data/chats.parquet", None), ([{}], None)],
)
def test_a_data_set_is_named_without_its_split(dataset: object, found: str | None) -> None:
    assert dataset_id(dataset) == found
