"""Finds and loads the compiled kernels, or says why there are none.

`load` takes the first of these that loads:

1. the library inside the package, from a wheel that was built where a compiler and torch were. It is passed over if it
was built without nvcc and one with CUDA kernels can be compiled here;
2. the library in the cache folder (`cache.py`), compiled there now if it is missing. Changed sources, flags or
compilers make another one;
3. nothing: the plain-torch reference runs every call, and one warning says why.

The library has CUDA kernels if nvcc took part (`compiler.choose_nvcc` says when). At first use they are compiled for
this machine's GPUs only. If nvcc fails, the library has none, and `why_not_cuda` returns its output.

Neither library is opened unless it fits the checksum beside it: a process that opens a damaged one dies of SIGBUS.

Importing this module does none of it: the first packed layer that is prepared, or computes, does.
"""

import ctypes
import os
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..utils.files import is_whole, write
from ..utils.logging import get_logger, tqdm
from . import compiler
from .cache import cache_folder, kept

_PACKAGE = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent
_REMEDY = "install a C++17 compiler (Debian, Ubuntu: apt install g++) or set CXX, and start again"

_TEXTS = (
    "qaig_cpu_features",
    "qaig_cpu_best_isa",
    "qaig_cpu_isa",
    "qaig_cpu_isa_error",
)

CPU_ISAS = ("portable", "avx2", "avx512")
"""The instruction sets of csrc/cpu/isa.h; each includes those before it."""

_logger = get_logger(__name__)
_lock = threading.Lock()


@dataclass(frozen=True)
class Extension:
    """The outcome of loading the compiled kernels.

    Attributes:
        library: the compiled kernels; None if there are none.
        path: where they lie.
        origin: how they were made: "prebuilt" or "built at first use".
        reason: why there are none.
        cuda_reason: why there are no CUDA kernels among them.
    """

    library: ctypes.CDLL | None = None
    path: Path | None = None
    origin: str | None = None
    reason: str | None = None
    cuda_reason: str | None = None


_found: Extension | None = None


def load() -> bool:
    """Loads the compiled kernels, once per process; compiling them may take a minute.

    Returns:
        whether they are loaded. If not, one warning said why and how to change it.

    Raises:
        ValueError: `QAIG_CPU_ISA` names no instruction set of the kernels, or one that this processor lacks.
    """
    return _load().library is not None


def why_not() -> str | None:
    """Returns why there are no compiled kernels; None if there are."""
    return _load().reason


def library_path() -> Path | None:
    """Returns the file of the compiled kernels, or None."""
    return _load().path


def library() -> ctypes.CDLL | None:
    """Returns the compiled kernels, for the few C functions that they export; None if there are none."""
    return _load().library


def origin() -> str | None:
    """Returns how the compiled kernels were made: "prebuilt" or "built at first use"; None without them."""
    return _load().origin


def cuda_architectures() -> tuple[str, ...]:
    """Lists the GPUs that the library has CUDA kernels for: "80", "90", or "120+PTX" for later GPUs, too."""
    path = library_path()
    return () if path is None else _architectures_in(path)


def why_not_cuda() -> str | None:
    """Returns why the library has no CUDA kernels; None if it has."""
    found = _load()
    return None if cuda_architectures() else found.cuda_reason or found.reason


def cpu_features() -> tuple[str, ...]:
    """Lists this processor's instruction sets that the kernels can use; empty without the kernels."""
    return tuple((_text("qaig_cpu_features") or "").split())


def best_cpu_isa() -> str | None:
    """Returns the best instruction set of this processor: "portable", "avx2" or "avx512"; None without the kernels."""
    return _text("qaig_cpu_best_isa")


def cpu_isas() -> tuple[str, ...]:
    """Lists the instruction sets that this processor can run, the best last; empty without the kernels."""
    best = best_cpu_isa()
    return () if best is None else CPU_ISAS[: CPU_ISAS.index(best) + 1]


def cpu_isa() -> str | None:
    """Returns the instruction set in use; None without the kernels.

    It is the best one, unless `QAIG_CPU_ISA` or `set_cpu_isa` says otherwise.
    """
    return _text("qaig_cpu_isa")


def set_cpu_isa(isa: str) -> None:
    """Makes the kernels use an instruction set from the next call on, in the whole process.

    Args:
        isa: one of `CPU_ISAS`.

    Raises:
        RuntimeError: there are no kernels.
        ValueError: `isa` is not one of `CPU_ISAS`, or this processor cannot run it.
    """
    library = _load().library
    if library is None:
        raise RuntimeError(f"the instruction set cannot be set, there are no compiled kernels: {why_not()}")
    status = library.qaig_set_cpu_isa(isa.encode())
    if status == 1:
        raise ValueError(f'isa must be "portable", "avx2" or "avx512", got "{isa}"')
    if status != 0:
        raise ValueError(f'isa "{isa}" is more than this processor can run: its best is "{best_cpu_isa()}"')


def has_kernel(op: str, device: str) -> bool:
    """Whether `qaig::op` has a kernel for tensors of a device type ("cpu", "cuda") now, from whatever source."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"qaig::{op}", device.upper())


def build() -> Path:
    """Returns the library in the cache folder, and compiles it if it is missing.

    Raises:
        CompileError: something that compiling needs is missing or fails.
        OSError: the cache folder cannot be written.
    """
    return _build()[0]


def _build() -> tuple[Path, str | None]:
    """Does as `build`; also returns why the library has no CUDA kernels, or None."""
    sources = compiler.find_sources(_PACKAGE)
    if sources is None:
        raise compiler.CompileError(f"{_PACKAGE} has no csrc folder: reinstall transformers-qaig")
    found = compiler.find_compiler()
    if found is None:
        raise compiler.CompileError(f"no C++ compiler that runs: {_REMEDY}")
    nvcc, cuda_reason = _choose_nvcc()
    if nvcc is not None:
        try:
            return _compile_once(sources, found, nvcc), None
        except compiler.CompileError as error:
            cuda_reason = str(error)
            _logger.warning("nvcc failed, so the kernels are compiled for the CPU alone: %s", error)
    return _compile_once(sources, found, None), cuda_reason


def _cuda_is_missing_in(prebuilt: Path) -> bool:
    """Whether another library with CUDA kernels can be compiled here: the prebuilt one was made without nvcc."""
    return not _architectures_in(prebuilt) and compiler.find_compiler() is not None and _choose_nvcc()[0] is not None


def _choose_nvcc() -> tuple[compiler.Nvcc | None, str | None]:
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

    return kept(folder / compiler.LIBRARY_NAME, compile_to)


def _architectures_in(library: Path) -> tuple[str, ...]:
    """Reads what csrc/ops/build_info.cpp wrote into a library, from the file: loading would register its kernels."""
    found = re.search(rb"qaig-cuda-architectures\[([^\]]*)\]", library.read_bytes())
    return tuple(found[1].decode().split()) if found else ()


def _text(function: str) -> str | None:
    library = _load().library
    return None if library is None else getattr(library, function)().decode()


def _load() -> Extension:
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _find()
    if _found.library is not None and (error := _found.library.qaig_cpu_isa_error()):
        raise ValueError(error.decode())
    return _found


def _find() -> Extension:
    if os.environ.get("QAIG_DISABLE_EXTENSION", "0") not in ("", "0"):
        return Extension(reason="QAIG_DISABLE_EXTENSION is set")
    prebuilt = _PACKAGE / compiler.LIBRARY_NAME
    if prebuilt.is_file() and not _cuda_is_missing_in(prebuilt):
        try:
            return Extension(_open(prebuilt), prebuilt, "prebuilt", cuda_reason="it was built without nvcc")
        except OSError as error:
            _logger.warning(
                "%s does not load on torch %s, so another is compiled: %s", prebuilt, torch.__version__, error
            )
    try:
        path, cuda_reason = _build()
        return Extension(_open(path), path, "built at first use", cuda_reason=cuda_reason)
    except (OSError, compiler.CompileError) as error:
        _logger.warning("No compiled kernels, so quantized layers run in plain torch, which is slow: %s", error)
        return Extension(reason=str(error))


def _open(path: Path) -> ctypes.CDLL:
    """Loads a library, which registers its kernels with torch.

    Raises:
        OSError: it is damaged, or does not load here.
    """
    if not is_whole(path):
        raise OSError(f"it is damaged (it does not fit {path.name}.sha256 beside it): reinstall transformers-qaig")
    library = ctypes.CDLL(str(path))
    try:
        for function in _TEXTS:
            getattr(library, function).restype = ctypes.c_char_p
        library.qaig_set_cpu_isa.argtypes = [ctypes.c_char_p]
    except AttributeError as error:
        raise OSError(f"{path} is another library than ours: {error}") from error
    return library
