"""What tests of builds share."""

import pytest

from transformers_qaig.kernels import compiler


@pytest.fixture(scope="session")
def compiled() -> dict[str, bytes]:
    """Key of a build → the library that the compiler made of it in this session."""
    return {}


@pytest.fixture
def package(package, compiled, monkeypatch):
    """The same package, whose libraries are compiled once a session: equal keys give equal libraries."""
    real = compiler.compile_library

    def compile_once(sources, torch_folder, found, library, nvcc=None):
        key = compiler.cache_key(sources, found, nvcc)
        if key not in compiled:
            real(sources, torch_folder, found, library, nvcc)
            compiled[key] = library.read_bytes()
        library.parent.mkdir(parents=True, exist_ok=True)
        library.write_bytes(compiled[key])

    monkeypatch.setattr(compiler, "compile_library", compile_once)
    return package
