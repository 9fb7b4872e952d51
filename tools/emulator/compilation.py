"""Compiles kernels and the emulator with g++ into one library; what an earlier run compiled is taken."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock

CSRC = Path(__file__).parents[2] / "csrc"
EMULATOR = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

_FLAGS = ["-std=c++17", "-O2", "-march=native", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def cuda_files(sources: Path) -> list[Path]:
    return sorted((sources / "cuda").rglob("*.cu"))


def compiled(files: list[Path], sources: Path, flags: list[str], link: list[str]) -> Path:
    """Returns the library of `files`, whose includes are looked for beside them, in `sources` and in the emulator.

    Raises:
        RuntimeError: something does not compile.
    """
    cache = Path(os.environ.get("QAIG_CACHE") or "~/.cache/transformers_qaig").expanduser() / "emulator"
    command, folders = [str(COMPILER), *_FLAGS, *flags], (sources, EMULATOR)
    digests = [_digest(file, command, folders) for file in files]
    folder = cache / hashlib.sha256("\0".join([*digests, *link]).encode()).hexdigest()[:20]
    library = folder / "kernels.so"
    for made in (folder, cache / "objects"):
        made.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not library.is_file():
            objects = [cache / "objects" / f"{digest}.o" for digest in digests]
            command += [f"-I{path}" for path in folders]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_make, objects, [[*command, "-xc++", "-c", str(file)] for file in files]))
            _make(library, [str(COMPILER), "-shared", *map(str, objects), *link])
    return library


def _digest(file: Path, command: Sequence[str], folders: Sequence[Path]) -> str:
    """Names an object file by all that it depends on, but for the compiler; of torch's headers by their version."""
    digest = hashlib.sha256("\0".join([*command, torch.__version__]).encode())
    for path in sorted(set(_included(file, folders, set()))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _included(file: Path, folders: Sequence[Path], seen: set[Path]) -> Iterator[Path]:
    """Yields a file and all that it includes by a name in quotes."""
    seen.add(file)
    yield file
    for name in _INCLUDE.findall(file.read_text()):
        found = next((path for folder in (file.parent, *folders) if (path := folder / name).is_file()), None)
        if found is not None and found not in seen:
            yield from _included(found, folders, seen)


def _make(target: Path, command: list[str]) -> None:
    """Lets `command` make a file, unless it is there. Two processes may do so at the same time."""
    if target.is_file():
        return
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[:2000]}")
        made.replace(target)
