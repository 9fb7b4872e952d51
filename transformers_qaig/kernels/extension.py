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
import platform
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from ..utils.files import is_whole
from ..utils.logging import get_logger
from . import compilation, compiler

_TEXTS = (
    "qaig_cpu_features",
    "qaig_cpu_isas",
    "qaig_cpu_best_isa",
    "qaig_cpu_isa",
    "qaig_cpu_isa_error",
)

_IS_ARM = platform.machine() in ("aarch64", "arm64")
CPU_ISAS = ("portable", "neon-dotprod", "neon-i8mm") if _IS_ARM else ("portable", "avx2", "avxvnni", "avx512", "amx")
"""The instruction sets of csrc/cpu/isa.h for this machine's architecture; each includes those before it."""

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
    return () if path is None else compilation.architectures_in(path)


def why_not_cuda() -> str | None:
    """Returns why the library has no CUDA kernels; None if it has."""
    found = _load()
    return None if cuda_architectures() else found.cuda_reason or found.reason


def cpu_features() -> tuple[str, ...]:
    """Lists this processor's instruction sets that the kernels can use; empty without the kernels."""
    return tuple((_text("qaig_cpu_features") or "").split())


def best_cpu_isa() -> str | None:
    """Returns the one of `CPU_ISAS` that is taken by default; None without the kernels."""
    return _text("qaig_cpu_best_isa")


def cpu_isas() -> tuple[str, ...]:
    """Lists the instruction sets that this processor can run, the best last; empty without the kernels."""
    return tuple((_text("qaig_cpu_isas") or "").split())


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
        raise ValueError(f'isa must be one of {", ".join(CPU_ISAS)}, got "{isa}"')
    if status != 0:
        raise ValueError(f'isa "{isa}" is more than this processor can run: its best is "{cpu_isas()[-1]}"')


def move_to_huge_pages(tensor: torch.Tensor) -> None:
    """Moves a filled tensor on the CPU to huge pages, through which the kernels stream weights faster.

    Nothing happens without the kernels, or where the operating system cannot do it.
    """
    library = _load().library
    if library is not None and tensor.device.type == "cpu":
        library.qaig_move_to_huge_pages(tensor.data_ptr(), tensor.nbytes)


def has_kernel(op: str, device: str) -> bool:
    """Whether `qaig::op` has a kernel for tensors of a device type ("cpu", "cuda") now, from whatever source."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"qaig::{op}", device.upper())


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
    prebuilt = compilation.PACKAGE / compiler.LIBRARY_NAME
    if prebuilt.is_file() and not compilation.cuda_is_missing_in(prebuilt):
        try:
            return Extension(_open(prebuilt), prebuilt, "prebuilt", cuda_reason="it was built without nvcc")
        except OSError as error:
            _logger.warning(
                "%s does not load on torch %s, so another is compiled: %s", prebuilt, torch.__version__, error
            )
    try:
        path, cuda_reason = compilation.build_or_reason()
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
        library.qaig_move_to_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        library.qaig_move_to_huge_pages.restype = None
    except AttributeError as error:
        raise OSError(f"{path} is another library than ours: {error}") from error
    return library
