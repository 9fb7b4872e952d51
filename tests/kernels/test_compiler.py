"""The compiler's key, its errors, and what it puts into a library."""

from pathlib import Path

import pytest
import torch

from transformers_qaig.kernels import compiler, extension

TORCH = Path(torch.__file__).parent

pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="needs a C++ compiler")


def test_errors_of_the_library_name_no_folder_of_the_machine_that_built_it(tmp_path):
    """torch's checks put the name of their source file into the message."""
    sources = tmp_path / "somewhere" / "csrc"
    sources.mkdir(parents=True)
    (sources / "failing.cpp").write_text('extern "C" const char* place() { return __FILE__; }\n')
    library = tmp_path / "library.so"
    compiler.compile_library(sources, TORCH, compiler.find_compiler(), library)
    assert b"csrc/failing.cpp" in library.read_bytes()
    assert b"somewhere" not in library.read_bytes()


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


def test_the_checkout_has_what_a_build_needs():
    assert compiler.find_sources(Path(extension.__file__).parents[1]) is not None
    assert compiler.find_torch() == TORCH
