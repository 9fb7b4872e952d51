"""Finding and loading the extension, with `csrc/cpu/isa.cpp` in place of nearly all of `csrc`."""

import shutil
import subprocess

import pytest
import torch

from tests.kernels.builds import leftovers, restart, warnings
from transformers_qaig.kernels import compilation, compiler, extension

pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="needs a C++ compiler")


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
