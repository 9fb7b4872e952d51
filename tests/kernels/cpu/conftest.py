"""The harness, compiled for processors that may not be here, and their emulators."""

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernels.cpu.harness import Harness
from transformers_qaig.kernels import compiler, extension

CSRC = compiler.find_sources(Path(extension.__file__).parents[1])
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wno-psabi")


def emulated_aarch64(cpu: str = "max") -> Harness:
    """The harness that `make cross` compiles, on a processor that qemu-user emulates."""
    path = os.environ.get("QAIG_AARCH64_HARNESS")
    if path is None:
        pytest.skip("`make cross` runs it")
    return Harness(("qemu-aarch64", "-cpu", cpu, path))


EMULATED_AMX = ("-DQAIG_EMULATE_AMX",)


def compile_harness(
    csrc: Path, folder: Path, changed: tuple[str, ...] = (), flags: tuple[str, ...] = EMULATED_AMX
) -> Harness:
    """Compiles the harness, with AMX emulated unless told otherwise (csrc/cpu/amx/tiles.h).

    Args:
        csrc: the sources.
        folder: for what is compiled; objects that lie there are taken as they are.
        changed: parts of the names of sources that are compiled anew.
        flags: of the compiler, besides `FLAGS`.
    """
    cxx = compiler.find_compiler()
    if cxx is None or platform.machine() != "x86_64":
        pytest.skip("needs a C++ compiler for x86-64")
    sources = [*sorted((csrc / "cpu").rglob("*.cpp")), Path(__file__).with_name("harness.cpp")]

    def compiled(source: Path) -> Path:
        made = folder / f"{source.parent.name}-{source.stem}.o"
        if not made.exists() or any(name in str(source) for name in changed):
            command = [*cxx.command, *FLAGS, *flags, f"-I{csrc}", "-c", str(source), "-o", str(made)]
            subprocess.run(command, check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = [str(made) for made in pool.map(compiled, sources)]
    subprocess.run([*cxx.command, *objects, "-pthread", "-o", str(folder / "harness")], check=True)
    return Harness((str(folder / "harness"),))


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the harness with AMX emulated, compiled."""
    folder = tmp_path_factory.mktemp("amx")
    if "amx" not in compile_harness(CSRC, folder).isas():
        pytest.skip("AMX is emulated on processors with AVX2")
    return folder


@pytest.fixture(params=["aarch64", pytest.param("amx", marks=[pytest.mark.slow, pytest.mark.exhaustive])])
def harness(request: pytest.FixtureRequest) -> Harness:
    """The harness for a kind of processor."""
    if request.param == "aarch64":
        return emulated_aarch64()
    return Harness((str(request.getfixturevalue("objects") / "harness"),))
