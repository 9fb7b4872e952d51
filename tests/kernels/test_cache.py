"""Whose the cache folder may be, and what in it is believed."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from transformers_qaig.kernels import cache

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
OTHER = 12345


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QAIG_CACHE", str(tmp_path / "above" / "cache"))
    (tmp_path / "above" / "cache" / "key").mkdir(parents=True)
    return tmp_path / "above" / "cache"


@pytest.mark.parametrize("part", ["key/file", "key", "", ".."])
@pytest.mark.parametrize("mode", [0o777, 0o772, 0o702])
def test_what_others_can_write_is_refused(folder: Path, part: str, mode: int) -> None:
    (folder / "key" / "file").touch()
    (folder / part).resolve().chmod(mode)
    with pytest.raises(PermissionError, match="chmod go-w") as caught:
        cache.require_trusted(folder / "key" / "file")
    assert str((folder / part).resolve()) in str(caught.value)


@as_root
@pytest.mark.parametrize("part", ["key/file", "key", "", ".."])
def test_what_belongs_to_another_user_is_refused(folder: Path, part: str) -> None:
    (folder / "key" / "file").touch()
    os.chown((folder / part).resolve(), OTHER, -1)
    with pytest.raises(PermissionError, match=f"another user.*{OTHER}"):
        cache.require_trusted(folder / "key" / "file")


@as_root
def test_a_group_with_others_in_it_is_refused_and_ones_own_is_not(folder: Path) -> None:
    folder.chmod(0o775)
    os.chown(folder, -1, OTHER)
    with pytest.raises(PermissionError, match=f"group {OTHER}"):
        cache.require_trusted(folder)
    os.chown(folder, -1, os.getgid())
    cache.require_trusted(folder)


def test_a_folder_for_all_is_good_above_the_cache_if_it_is_sticky(folder: Path) -> None:
    folder.parent.chmod(0o1777)
    cache.require_trusted(folder / "key" / "file")
    folder.chmod(0o1777)
    with pytest.raises(PermissionError, match="everybody"):
        cache.require_trusted(folder / "key" / "file")


def test_a_link_is_followed_and_the_way_to_it_is_looked_at(folder: Path, tmp_path: Path, monkeypatch) -> None:
    link, middle = tmp_path / "link", tmp_path / "open" / "middle"
    middle.parent.mkdir()
    middle.symlink_to(folder)
    link.symlink_to("open/middle")
    monkeypatch.setenv("QAIG_CACHE", str(link))
    cache.require_trusted(link / "key" / "file")
    middle.parent.chmod(0o777)  # where the second link can be exchanged
    with pytest.raises(PermissionError, match="open can be written"):
        cache.require_trusted(link / "key" / "file")
    middle.parent.chmod(0o755)
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="cache can be written"):
        cache.require_trusted(link / "key" / "file")


@pytest.mark.parametrize("umask", [0o000, 0o002])
def test_what_is_made_here_is_trusted_whatever_the_umask(folder: Path, monkeypatch, umask: int) -> None:
    monkeypatch.setenv("QAIG_CACHE", str(folder / "a" / "b"))
    before = os.umask(umask)
    try:
        for _ in range(2):
            file = cache.cached_file(folder / "a" / "b" / "key" / "file", lambda path: path.write_text("1"))
    finally:
        os.umask(before)
    assert file.read_text() == "1"


def test_a_file_is_made_once_and_again_if_it_was_changed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("1")

    file = folder / "key" / "file"
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: cache.cached_file(file, make), range(8))) == {file}
    assert len(made) == 1
    assert caplog.text == ""
    file.write_text("2")
    assert cache.cached_file(file, make).read_text() == "1"
    assert len(made) == 2
    assert str(file) in caplog.text


def test_an_error_while_a_file_is_made_leaves_nothing(folder: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.cached_file(folder / "key" / "file", fail)
    assert [path.name for path in (folder / "key").iterdir() if path.suffix != ".lock"] == []


def test_no_home_folder_is_an_error_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("QAIG_CACHE")
    monkeypatch.setattr(Path, "expanduser", nowhere)
    assert "QAIG_CACHE" in cache.why_not_trusted()


@pytest.mark.parametrize("kind", ["file", "fifo", "circle of links", "link to nothing"])
def test_a_cache_that_is_no_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.touch()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to("place" if kind == "circle of links" else "nowhere")
    monkeypatch.setenv("QAIG_CACHE", str(place))
    with pytest.raises(OSError, match=f"{place} is no folder.*QAIG_CACHE"):
        cache.cached_file(cache.cache_folder() / "key" / "file", lambda file: file.touch())
