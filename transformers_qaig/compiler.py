"""Compiles `csrc/` into one shared library: used by `setup.py`, and by `extension.py` at first use.

Imports nothing but the standard library: `setup.py` runs this file where neither torch nor the package can be imported.
The library uses the stable ABI of torch and none of Python's, so one binary serves every Python and every torch from
`TORCH_TARGET` on.
"""

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

TORCH_TARGET = "0x020a000000000000"  # torch 2.10: the oldest ABI that has all we call
LIBRARY_NAME = "_C.abi3.so"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-pthread",
)


class CompileError(RuntimeError):
    """The compiler refused, with what it said."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the words of its command, and what it says about itself (version and machine)."""

    command: tuple[str, ...]
    identity: str


def find_compiler() -> Compiler | None:
    """The compiler that `CXX` names or, without that variable, the first of g++, clang++, c++ that runs; or None."""
    named = os.environ.get("CXX")
    for text in (named,) if named else ("g++", "clang++", "c++"):
        command = tuple(shlex.split(text))
        if command and shutil.which(command[0]):
            answers = [
                subprocess.run([*command, flag], capture_output=True, text=True, check=False)
                for flag in ("--version", "-dumpmachine")
            ]
            if all(answer.returncode == 0 for answer in answers):
                return Compiler(command, "\n".join(answer.stdout.strip() for answer in answers))
    return None


def find_torch() -> Path | None:
    """The folder of an installed torch that has the headers we need, found without importing it; or None.

    pip builds with the interpreter of the environment it installs into, but hides that environment's packages. Its
    site-packages folder is looked into, too: headers and libraries are all that is wanted of torch.
    """
    spec = importlib.util.find_spec("torch")
    found = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    found += [Path(sysconfig.get_path(key)) / "torch" for key in ("platlib", "purelib")]
    for folder in found:
        if (folder / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return folder
    return None


def find_sources(package: Path) -> Path | None:
    """The folder `csrc` of an installed package, or of the checkout that `package` lies in; or None."""
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "ops.cpp").is_file():
            return folder
    return None


def extra_flags() -> tuple[str, ...]:
    """Words of `QAIG_CXXFLAGS`, for the compiler and the linker (sanitizers, debugging)."""
    return tuple(shlex.split(os.environ.get("QAIG_CXXFLAGS", "")))


def cache_key(sources: Path, compiler: Compiler) -> str:
    """Names a build: equal keys give equal libraries. Hex digits, from everything the library depends on."""
    digest = hashlib.sha256()
    for part in (compiler.identity, *compiler.command, *FLAGS, *extra_flags(), TORCH_TARGET, sys.platform):
        digest.update(part.encode() + b"\0")
    digest.update(platform.machine().encode() + b"\0")
    for path in sorted(sources.rglob("*")):
        if path.suffix in (".cpp", ".h"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(sources)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:20]


def compile_library(sources: Path, torch: Path, compiler: Compiler, library: Path) -> None:
    """Compiles every `.cpp` below `sources`, as many at once as there are processors, and links them into `library`.

    The library appears under its name complete or not at all, and nothing else stays behind.

    Args:
        sources (`Path`): the folder `csrc`.
        torch (`Path`): the folder of an installed torch.
        compiler (`Compiler`): from `find_compiler`.
        library (`Path`): the file to write; its folder is made.

    Raises:
        CompileError: if a file does not compile or the library does not link.
        OSError: if the folder cannot be written.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    include = torch / "include"
    flags = [*FLAGS, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-I{sources}", f"-isystem{include}", *extra_flags()]
    files = sorted(sources.rglob("*.cpp"))
    with tempfile.TemporaryDirectory(prefix=".build-", dir=library.parent) as folder:
        objects = [Path(folder) / f"{number}.o" for number in range(len(files))]
        commands = [[*compiler.command, *flags, "-c", str(f), "-o", str(o)] for f, o in zip(files, objects)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            runs = [pool.submit(_run, command) for command in commands]
            try:
                for run in as_completed(runs):
                    run.result()
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure: do not compile the rest
        linked = Path(folder) / LIBRARY_NAME
        # torch is already loaded when this library is, so it needs the name of torch's library, not the way to it.
        link = ["-shared", "-pthread", *extra_flags(), *map(str, objects), f"-L{torch / 'lib'}", "-ltorch_cpu"]
        _run([*compiler.command, *link, "-o", str(linked)])
        os.replace(linked, library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[:2000] or "it said nothing"
        raise CompileError(f"{shlex.join(command)} failed with status {done.returncode}: {said}")
