"""What may be the path of a folder, and how what may not is told."""

import errno
import os
from pathlib import Path

import pytest

from transformers_qaig.config.folder import check_folder


def test_folders_that_are_there_or_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path, str(tmp_path), tmp_path / "none" / "below", ".", "~", "~/none"):
        check_folder(folder, "work_dir")


def test_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    for file in (tmp_path / "file", str(tmp_path / "file"), "~/file"):
        with pytest.raises(ValueError, match=f"`offload_folder` must be the path of a folder, and {file} is a file"):
            check_folder(file, "offload_folder")


@pytest.mark.parametrize("value", [None, 3, True, b"bytes", "", ["a"], {"a": 1}, object])
def test_what_is_no_path_is_quoted(value: object) -> None:
    with pytest.raises(ValueError, match=r"`work_dir` must be the path of a folder, got .*\.$"):
        check_folder(value, "work_dir")


def test_paths_that_no_system_has_are_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for path, why in (
        ("nul\0byte", "null"),
        ("half\ud800", "surrogates"),
        ("x" * 5_000, "too long"),
        (tmp_path / "circle", "symbolic links"),
        (tmp_path / "circle" / "below", "symbolic links"),
    ):
        with pytest.raises(
            ValueError, match=rf"`work_dir` must be the path of a folder, got .*\(.*{why}.*\)"
        ) as raised:
            check_folder(path, "work_dir")
        assert len(str(raised.value)) < 500


def test_a_folder_that_cannot_be_looked_into_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(ValueError, match=r"got 'closed/below' \(Permission denied\)"):
            check_folder("closed/below", "work_dir")
