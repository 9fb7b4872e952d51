"""Files that are there whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from transformers_qaig.utils import files
from transformers_qaig.utils.files import (
    is_whole,
    remove_unfinished,
    require_writable,
    write,
    written_whole,
    written_with_checksum,
)


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


@pytest.mark.parametrize("changed", [b"conten", b"", b"co\0tent", b"contentx"])
def test_a_file_that_was_changed_is_not_whole(tmp_path: Path, changed: bytes) -> None:
    file = tmp_path / "library.so"
    with written_with_checksum(file) as temporary:
        temporary.write_bytes(b"content")
    assert is_whole(file)
    file.write_bytes(changed)
    assert not is_whole(file)


def test_what_was_not_written_here_is_not_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert not is_whole(file)
    file.write_text("content")
    assert not is_whole(file)
    file.unlink()
    os.mkfifo(file)
    assert not is_whole(file)


def test_a_writer_that_was_killed_leaves_what_can_be_told_and_removed(tmp_path: Path) -> None:
    write(tmp_path / "a", "whole")
    code = (
        f"import os, runpy; files = runpy.run_path({files.__file__!r})\n"
        f"with files['written_whole']({str(tmp_path / 'a')!r}) as f: f.write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / "a").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_refused_by_the_settings_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`work_dir`: nothing can be written to .*another folder"):
        require_writable(tmp_path / folder, "work_dir")
    require_writable(tmp_path / "new" / "folder", "work_dir")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_an_error_without_a_name_gets_the_files(tmp_path: Path) -> None:
    """As when the disk is full."""
    with pytest.raises(OSError, match=r"No space left.*card\.md"), written_whole(tmp_path / "card.md"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def _interrupted(file: Path) -> None:
    with written_whole(file) as temporary:
        temporary.write_text("half of the sec")
        assert file.read_text() == "first"
        raise KeyboardInterrupt


def test_half_of_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    files.write(tmp_path / "text", "half \ud800, whole 🤗")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "half \\ud800, whole 🤗"
