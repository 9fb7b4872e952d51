"""JSON files from anywhere: what is no file, too large, too deep or ambiguous is refused."""

from pathlib import Path

import pytest

from transformers_qaig.utils.json_file import read_json

MIB = 1 << 20


def test_a_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": [1, {"x": 2}]}')
    (tmp_path / "link").symlink_to("a.json")
    assert read_json(tmp_path / "link", MIB) == read_json(tmp_path / "a.json", MIB) == {"x": [1, {"x": 2}]}


def test_what_is_missing_a_folder_or_too_large_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_text(" " * MIB + "1")
    for name, message in (("none", "does not exist"), (".", "no file"), ("large.json", "larger than 1 MiB")):
        with pytest.raises(OSError, match=message):
            read_json(tmp_path / name, MIB)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "Expecting"), ("[" * 200_000, "too deeply"), ('{"a": {"k": 1, "k": 1}}', "'k' twice")],
)
def test_what_is_no_json_or_says_a_thing_twice_is_a_valueerror(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "bad.json", MIB)


def test_the_last_of_equal_keys_counts_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"k": 1, "k": 2}')
    assert read_json(tmp_path / "a.json", MIB, last_counts=True) == {"k": 2}
