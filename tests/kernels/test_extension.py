"""Finding, compiling and loading the extension, with `csrc/cpu/isa.cpp` in place of nearly all of `csrc`."""

import logging
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from transformers_qaig.kernels import compilation, compiler, extension

TORCH = Path(torch.__file__).parent

pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="needs a C++ compiler")


def restart(monkeypatch):
    """As if the process were a new one."""
    monkeypatch.setattr(extension, "_found", None)


def fake_compiler(path: Path, body: str) -> str:
    """A compiler that knows its version and otherwise does what the lines of shell in `body` say."""
    path.write_text(f'#!/bin/sh\ncase "$1" in --version|-dumpmachine) echo fake; exit 0;; esac\n{body}\n')
    path.chmod(0o755)
    return str(path)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock" and path.is_file())


def test_compiles_once_and_loads(package, compilations, monkeypatch, caplog, capfd, tmp_path):
    assert extension.load()
    assert extension.why_not() is None
    assert extension.origin() == "built at first use"
    assert extension.library_path().parent == compilations[0].parent
    assert leftovers(tmp_path / "cache") == [compiler.LIBRARY_NAME, f"{compiler.LIBRARY_NAME}.sha256"]
    restart(monkeypatch)
    assert extension.load()
    assert len(compilations) == 1
    assert warnings(caplog) == []
    assert "Compiling the kernels, once" in capfd.readouterr().err


def test_errors_of_the_library_name_no_folder_of_the_machine_that_built_it(tmp_path):
    """torch's checks put the name of their source file into the message."""
    sources = tmp_path / "somewhere" / "csrc"
    sources.mkdir(parents=True)
    (sources / "failing.cpp").write_text('extern "C" const char* place() { return __FILE__; }\n')
    library = tmp_path / "library.so"
    compiler.compile_library(sources, TORCH, compiler.find_compiler(), library)
    assert b"csrc/failing.cpp" in library.read_bytes()
    assert b"somewhere" not in library.read_bytes()


def test_threads_and_processes_compile_once(package, compilations):
    """`build` locks a file, as between processes; `load` has a lock for the threads of one."""
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: compilation.build(), range(4)))) == 1
        assert all(pool.map(lambda _: extension.load(), range(4)))
    assert len(compilations) == 1


def test_the_key_names_all_that_a_library_depends_on(package, monkeypatch):
    sources, found = package / "csrc", compiler.Compiler(("g++",), "12")
    keys = [compiler.cache_key(sources, found), compiler.cache_key(sources, compiler.Compiler(("g++",), "13"))]
    keys.append(compiler.cache_key(sources, compiler.Compiler(("ccache", "g++"), "12")))
    monkeypatch.setenv("QAIG_CXXFLAGS", "-g")
    keys.append(compiler.cache_key(sources, found))
    monkeypatch.delenv("QAIG_CXXFLAGS")
    (sources / "notes.txt").write_text("no source")
    assert compiler.cache_key(sources, found) == keys[0]
    header = sources / "cpu" / "isa.h"
    header.write_text(header.read_text() + "\n")
    keys.append(compiler.cache_key(sources, found))
    header.rename(sources / "cpu" / "other.h")
    keys.append(compiler.cache_key(sources, found))
    assert len(set(keys)) == len(keys)


def test_no_compiler(package, monkeypatch, caplog, compilations):
    monkeypatch.setenv("CXX", "false")
    assert not extension.load()
    assert not extension.load()
    assert "g++" in extension.why_not()
    assert [extension.library_path(), extension.origin(), extension.cpu_isa()] == [None, None, None]
    assert extension.cpu_features() == ()
    assert len(warnings(caplog)) == 1
    assert "install a C++17 compiler" in warnings(caplog)[0]
    assert compilations == []
    with pytest.raises(RuntimeError, match="no compiled kernels"):
        extension.set_cpu_isa("portable")


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


def test_a_cache_that_cannot_be_written(package, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QAIG_CACHE", str(tmp_path / "file"))
    assert not extension.load()
    assert str(tmp_path / "file") in warnings(caplog)[0]


def test_disabled(package, monkeypatch, caplog, compilations):
    monkeypatch.setenv("QAIG_DISABLE_EXTENSION", "1")
    assert not extension.load()
    assert "QAIG_DISABLE_EXTENSION" in extension.why_not()
    assert compilations == []
    assert caplog.records == []


def test_prebuilt_comes_first(package, prebuild, compilations):
    prebuild(compilation.build())
    assert extension.load()
    assert extension.origin() == "prebuilt"
    assert extension.library_path() == package / compiler.LIBRARY_NAME
    assert len(compilations) == 1


@pytest.mark.parametrize("other", [b"not a library", None])
def test_a_prebuilt_library_that_does_not_load(package, prebuild, tmp_path, caplog, other):
    """No library at all, or another one than ours."""
    file = tmp_path / "other.so"
    subprocess.run(["g++", "-shared", "-xc++", "/dev/null", "-o", file], check=True)
    if other is not None:
        file.write_bytes(other)
    prebuild(file)
    assert extension.load()
    assert extension.origin() == "built at first use"
    assert len(warnings(caplog)) == 1
    assert torch.__version__ in warnings(caplog)[0]


def test_a_damaged_prebuilt_library_is_not_opened(package, prebuild, caplog):
    file = prebuild(compilation.build())
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert extension.load()
    assert extension.origin() == "built at first use"
    assert len(warnings(caplog)) == 1
    assert "damaged" in warnings(caplog)[0]
    assert "reinstall" in warnings(caplog)[0]


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


@pytest.mark.parametrize(
    ("said", "may_pass"),
    [
        ("as: error: /tmp/x.o: No space left on device", True),
        ("g++: fatal error: Killed signal terminated program cc1plus", True),
        ("nvcc failed with status -9: it said nothing", True),
        ("kernel.cu:1: error: expected ';'", False),
    ],
)
def test_which_failures_of_a_compiler_may_pass(said, may_pass):
    assert compiler.CompileError(said).may_pass == may_pass


def test_an_nvcc_that_had_no_room_is_tried_again(package, compilations, monkeypatch, tmp_path):
    nvcc = fake_compiler(tmp_path / "nvcc", "echo 'No space left on device' >&2; exit 1")
    monkeypatch.setattr(compilation, "choose_nvcc", lambda: (compiler.Nvcc((nvcc,), "nvcc", "13.0"), None))
    (package / "csrc" / "kernel.cu").touch()
    for _ in range(2):
        restart(monkeypatch)
        assert extension.load()
    assert [file.parent == extension.library_path().parent for file in compilations] == [False, True, False]


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


def test_no_sources(package):
    shutil.rmtree(package / "csrc")
    assert not extension.load()
    assert "reinstall" in extension.why_not()


def test_instruction_sets(package, monkeypatch):
    emulated = ("amx",) if "emulated-amx" in extension.cpu_features() else ()
    best = [isa for isa in extension.cpu_isas() if isa not in emulated][-1]
    assert extension.cpu_isa() == extension.best_cpu_isa() == best
    for isa in extension.cpu_isas():
        extension.set_cpu_isa(isa)
        assert extension.cpu_isa() == isa
    with pytest.raises(ValueError, match=r'one of portable, .*, got "neon"'):
        extension.set_cpu_isa("neon")
    assert extension.cpu_isa() == extension.best_cpu_isa()


@pytest.mark.parametrize(
    "variables",
    [
        {"QAIG_CPU_ISA": "portable"},
        {"QAIG_CPU_LEVEL": "portable"},
        {"QAIG_CPU_ISA": "portable", "QAIG_CPU_LEVEL": "neon"},
        {"QAIG_CPU_ISA": "", "QAIG_CPU_LEVEL": "portable"},
    ],
    ids=str,
)
def test_instruction_set_from_the_environment(package, monkeypatch, variables):
    """The old name of the variable counts where the new one is not set."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert extension.cpu_isa() == "portable"


@pytest.mark.parametrize("variable", ["QAIG_CPU_ISA", "QAIG_CPU_LEVEL"])
def test_an_unknown_instruction_set(package, monkeypatch, variable):
    monkeypatch.setenv(variable, "neon")
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{variable}=neon.*one of portable, .*, or unset it"):
            extension.load()


def test_an_instruction_set_that_the_processor_lacks(package, monkeypatch):
    """Compiled as for another architecture, the library knows no instruction set but portable."""
    source = package / "csrc" / "cpu" / "isa.cpp"
    source.write_text(source.read_text().replace("#if defined(__x86_64__)", "#if 0"))
    assert extension.best_cpu_isa() == "portable"
    with pytest.raises(ValueError, match='"avx2" is more than this processor can run: its best is "portable"'):
        extension.set_cpu_isa("avx2")
    assert extension.cpu_isa() == "portable"
    monkeypatch.setenv("QAIG_CPU_ISA", "avx512")
    monkeypatch.setenv("QAIG_CXXFLAGS", "-g0")  # another file: a library reads the variable once
    restart(monkeypatch)
    with pytest.raises(ValueError, match=r"QAIG_CPU_ISA=avx512.*best is portable.*unset"):
        extension.load()


def test_the_checkout_has_what_a_build_needs():
    assert compiler.find_sources(Path(extension.__file__).parents[1]) is not None
    assert compiler.find_torch() == TORCH
