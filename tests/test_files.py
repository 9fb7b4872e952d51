"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from transformers_qaig.files import write, written_whole


def test_a_file_is_replaced_at_the_end_and_only_if_all_went_well(tmp_path: Path) -> None:
    file = tmp_path / "card.md"
    write(file, "first")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(file)
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]
    with written_whole(file) as temporary:
        assert temporary.suffix == ".md"
        temporary.write_text("second")
    assert file.read_text() == "second"
    assert list(tmp_path.iterdir()) == [file]


def _interrupted(file: Path) -> None:
    with written_whole(file) as temporary:
        temporary.write_text("half of the sec")
        assert file.read_text() == "first"
        raise KeyboardInterrupt
