"""Compiles kernels and the emulator with g++ into one library, unless an earlier run did."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

CSRC = Path(__file__).parents[2] / "csrc"
EMULATOR = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

_FLAGS = ["-std=c++17", "-O2", "-march=native", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def cuda_files(sources: Path) -> list[Path]:
    return sorted((sources / "cuda").rglob("*.cu"))


def compiled(files: list[Path], sources: Path, flags: list[str], link: list[str]) -> Path:
    command = [str(COMPILER), *_FLAGS, *flags]
    digest = hashlib.sha256("\0".join([*command, *link]).encode())
    for folder in (sources / "cuda", sources / "ops", EMULATOR):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".cpp", ".h", ".cu", ".cuh"):
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    cache = Path(os.environ.get("QAIG_CACHE") or "~/.cache/transformers_qaig").expanduser()
    folder = cache / "emulator" / digest.hexdigest()[:20]
    library = folder / "kernels.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not library.is_file():
            _compile(files, [*command, f"-I{sources}", f"-I{EMULATOR}"], link, library)
    return library


def _compile(files: list[Path], command: list[str], link: list[str], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = [f"{folder}/{path.name}.o" for path in files]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, [[*command, "-xc++", "-c", str(f), "-o", o] for f, o in zip(files, objects)]))
        linked = Path(folder) / "kernels.so"
        _run([str(COMPILER), "-shared", *objects, *link, "-o", str(linked)])
        linked.replace(library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[:2000]}")
