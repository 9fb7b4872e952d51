import errno
import tempfile
from pathlib import Path

import pytest

from transformers_qaig.utils.errors import SettingError
from transformers_qaig.utils.temporary import raise_if_full, temporary_folder


def test_it_is_pythons_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert temporary_folder() == tmp_path


def test_a_folder_that_is_gone_is_named_with_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(SettingError, match=r"`TMPDIR`: .*/gone, the folder for temporary files, is gone\. Make it, or"):
        temporary_folder()


def test_where_python_finds_no_folder_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(SettingError, match=r"`TMPDIR`: No usable temporary directory.*Set `TMPDIR` to a folder"):
        temporary_folder()


def test_a_folder_without_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=rf"`TMPDIR`: {tmp_path}, .* has no room \(No space left"):
        raise_if_full(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "mine")
    raise_if_full(OSError(errno.EACCES, "Permission denied"), tmp_path / "mine")
    raise_if_full(ValueError("something else"), tmp_path / "mine")
