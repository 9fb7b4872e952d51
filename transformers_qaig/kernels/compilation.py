"""Compiles the kernels into the cache folder: once for these sources, flags, compilers and GPUs."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import torch

from ..utils.files import write
from ..utils.logging import get_logger, tqdm
from . import compiler
from .cache import cache_folder, cached_file

PACKAGE = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent
_REMEDY = "install a C++17 compiler (Debian, Ubuntu: apt install g++) or set CXX, and start again"

_logger = get_logger(__name__)


def build() -> Path:
    """Returns the library in the cache folder, and compiles it if it is missing.

    Raises:
        CompileError: something that compiling needs is missing or fails.
        OSError: the cache folder cannot be written.
    """
    return build_or_reason()[0]


def build_or_reason() -> tuple[Path, str | None]:
    """Does as `build`; also returns why the library has no CUDA kernels, or None."""
    sources = compiler.find_sources(PACKAGE)
    if sources is None:
        raise compiler.CompileError(f"{PACKAGE} has no csrc folder: reinstall transformers-qaig")
    found = compiler.find_compiler()
    if found is None:
        raise compiler.CompileError(f"no C++ compiler that runs: {_REMEDY}")
    nvcc, cuda_reason = choose_nvcc()
    if nvcc is not None:
        try:
            return _compile_once(sources, found, nvcc), None
        except compiler.CompileError as error:
            cuda_reason = str(error)
            _logger.warning("nvcc failed, so the kernels are compiled for the CPU alone: %s", error)
    return _compile_once(sources, found, None), cuda_reason


def cuda_is_missing_in(prebuilt: Path) -> bool:
    """Whether another library with CUDA kernels can be compiled here: the prebuilt one was made without nvcc."""
    return not architectures_in(prebuilt) and compiler.find_compiler() is not None and choose_nvcc()[0] is not None


def choose_nvcc() -> tuple[compiler.Nvcc | None, str | None]:
    """Chooses the nvcc for this machine's GPUs or for `QAIG_CUDA_ARCHS`, or says why CUDA kernels are not compiled."""
    try:
        request = compiler.cuda_request()
        nvcc, reason = compiler.choose_nvcc(_TORCH)
    except compiler.CompileError as error:
        _logger.warning("No CUDA kernels: %s", error)
        return None, str(error)
    if nvcc is None or isinstance(request, tuple):
        return nvcc, reason
    local = _local_architectures()
    if local:
        return replace(nvcc, architectures=local), None
    if request:
        return nvcc, None
    return None, "nvidia-smi finds no GPU here (QAIG_CUDA_ARCHS names what to compile for all the same)"


def _local_architectures() -> tuple[str, ...]:
    """Lists the architectures of this machine's GPUs.

    It runs nvidia-smi, because CUDA does not survive a fork of a process that has begun to use it.
    """
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {line.strip().replace(".", "") for line in said.stdout.splitlines()} if said.returncode == 0 else set()
    return tuple(sorted((a for a in found if a.isdigit()), key=int))


def _compile_once(sources: Path, found: compiler.Compiler, nvcc: compiler.Nvcc | None) -> Path:
    """Returns the library of this key in the cache. A failed nvcc is not run again: it may take minutes to fail."""
    folder = cache_folder() / compiler.cache_key(sources, found, nvcc)
    failure = folder / "failure.txt"

    def compile_to(library: Path) -> None:
        if failure.is_file():
            said = failure.read_text(encoding="utf-8", errors="replace")
            raise compiler.CompileError(f"{said} (remove {folder} to try again)")
        _logger.info("Compiling the kernels into %s, once: this may take a minute", folder)
        try:
            with tqdm(total=1, desc="Compiling the kernels, once", unit="library") as bar:
                compiler.compile_library(sources, _TORCH, found, library, nvcc)
                bar.update()
        except compiler.CompileError as error:
            if nvcc is not None and not error.may_pass:
                write(failure, str(error))
            raise

    return cached_file(folder / compiler.LIBRARY_NAME, compile_to)


def architectures_in(library: Path) -> tuple[str, ...]:
    """Reads what csrc/ops/build_info.cpp wrote into a library, from the file: loading would register its kernels."""
    found = re.search(rb"qaig-cuda-architectures\[([^\]]*)\]", library.read_bytes())
    return tuple(found[1].decode().split()) if found else ()
