"""Compiling into the cache: once, whole or not at all, with `csrc/cpu/isa.cpp` in place of nearly all of `csrc`."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernels.builds import fake_compiler, leftovers, restart, warnings
from transformers_qaig.kernels import compilation, compiler, extension

pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="needs a C++ compiler")


def test_threads_and_processes_compile_once(package, compilations, monkeypatch):
    """`build` locks a file, as between processes; `load` has a lock for the threads of one."""
    monkeypatch.setenv("QAIG_CXXFLAGS", "-DNEW")  # a build that takes its time: no other test has compiled it
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: compilation.build(), range(4)))) == 1
        assert all(pool.map(lambda _: extension.load(), range(4)))
    assert len(compilations) == 1


@pytest.mark.parametrize(
    "fails", ["exit 1", 'case "$*" in *-shared*) echo no linker >&2; exit 1;; *) exec g++ "$@";; esac']
)
def test_a_compiler_that_fails_leaves_nothing(package, monkeypatch, caplog, compilations, tmp_path, fails):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path / "cxx", fails))
    assert not extension.load()
    assert not extension.load()
    assert len(compilations) == 1
    assert len(warnings(caplog)) == 1
    assert "failed with status 1" in extension.why_not()
    assert leftovers(tmp_path / "cache") == []


def test_says_what_the_compiler_said(package):
    (package / "csrc" / "cpu" / "isa.h").write_text("#error this one is broken\n")
    assert not extension.load()
    assert "this one is broken" in extension.why_not()


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def with_a_hole(raw: bytes) -> bytes:
    return raw[:4096] + bytes(4096) + raw[8192:]


def emptied(raw: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("damage", "checksum"), [(cut, "there"), (with_a_hole, "there"), (cut, "missing"), (emptied, "damaged")]
)
def test_a_damaged_library_in_the_cache_is_compiled_again(package, compilations, monkeypatch, caplog, damage, checksum):
    file = compilation.build()
    raw, beside = file.read_bytes(), file.with_name(f"{file.name}.sha256")
    file.write_bytes(damage(raw))
    if checksum == "missing":
        beside.unlink()
    elif checksum == "damaged":
        beside.write_bytes(b"\xff\0")
    assert extension.load()
    assert extension.library_path() == file
    assert len(compilations) == 2
    assert len(warnings(caplog)) == 1
    assert str(file) in warnings(caplog)[0]
    restart(monkeypatch)
    assert extension.load()
    assert len(compilations) == 2


def test_what_killed_builds_left_is_removed(package, tmp_path):
    file = compilation.build()
    file.unlink()
    (file.parent / f".unfinished-0123-{file.name}").write_bytes(b"half")
    folder = file.parent / f".unfinished-4567-{file.name}"
    folder.mkdir()
    (folder / "0.o").touch()
    compilation.build()
    assert leftovers(tmp_path / "cache") == [file.name, f"{file.name}.sha256"]
    assert not folder.exists()


def test_an_nvcc_that_had_no_room_is_tried_again(package, compilations, monkeypatch, tmp_path):
    nvcc = fake_compiler(tmp_path / "nvcc", "echo 'No space left on device' >&2; exit 1")
    monkeypatch.setattr(compilation, "choose_nvcc", lambda: (compiler.Nvcc((nvcc,), "nvcc", "13.0"), None))
    (package / "csrc" / "kernel.cu").touch()
    for _ in range(2):
        restart(monkeypatch)
        assert extension.load()
    assert [file.parent == extension.library_path().parent for file in compilations] == [False, True, False]


def test_a_cache_that_cannot_be_written(package, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QAIG_CACHE", str(tmp_path / "file"))
    assert not extension.load()
    assert str(tmp_path / "file") in warnings(caplog)[0]


def test_a_cache_that_others_can_write_is_refused_with_what_to_do(package, compilations, tmp_path, caplog):
    """A library in there would be anybody's code."""
    file = compilation.build()
    (tmp_path / "cache").chmod(0o777)
    assert not extension.load()
    assert len(warnings(caplog)) == 1
    for words in (str(tmp_path / "cache"), "chmod", "QAIG_CACHE"):
        assert words in warnings(caplog)[0]
        assert words in extension.why_not()
    assert file.exists()
    with pytest.raises(PermissionError, match="QAIG_CACHE"):
        compilation.build()
