"""Finds and loads the compiled kernels, or says why there are none.

`load` takes the first of these that loads:

1. the library inside the package (a wheel built where a compiler and torch were);
2. the library in the cache folder, compiled there now if it is missing: `QAIG_CACHE`, default
   `~/.cache/transformers_qaig`. Changed sources, flags or compilers make another one;
3. nothing: the plain-torch reference answers every call, and one warning says why.

Importing this module does none of it: the first packed layer that is prepared, or computes, does.
"""

import ctypes
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from . import compiler

_PACKAGE = Path(__file__).parent
_REMEDY = "install a C++17 compiler (Debian, Ubuntu: apt install g++) or set CXX, and start again"

_logger = logging.getLogger(__name__)
_lock = threading.Lock()


@dataclass(frozen=True)
class Extension:
    """How loading ended.

    Attributes:
        library (`ctypes.CDLL`, *optional*): the compiled kernels; None if there are none.
        path (`Path`, *optional*): where they lie.
        origin (`str`, *optional*): how they came to be: "prebuilt" or "built at first use".
        reason (`str`, *optional*): why there are none.
    """

    library: ctypes.CDLL | None = None
    path: Path | None = None
    origin: str | None = None
    reason: str | None = None


_found: Extension | None = None


def load() -> bool:
    """Loads the compiled kernels if that has not been tried yet in this process; compiling may take a minute, once.

    Returns:
        `bool`: whether they are there. If not, a warning said why and how to change it, once.

    Raises:
        ValueError: if `QAIG_CPU_LEVEL` is not a level, or not one this processor can run.
    """
    return _load().library is not None


def why_not() -> str | None:
    """Why there are no compiled kernels; None if there are."""
    return _load().reason


def library_path() -> Path | None:
    """The file of the compiled kernels, or None."""
    return _load().path


def origin() -> str | None:
    """How the compiled kernels came to be: "prebuilt" or "built at first use"; None without them."""
    return _load().origin


def cpu_features() -> tuple[str, ...]:
    """Which of the instruction sets the kernels can use this processor has; empty without the kernels."""
    return tuple((_text("qaig_cpu_features") or "").split())


def best_cpu_level() -> str | None:
    """The highest level this processor can run: "portable", "avx2" or "avx512"; None without the kernels."""
    return _text("qaig_cpu_best_level")


def cpu_level() -> str | None:
    """The level in force: the best, or what `QAIG_CPU_LEVEL` or `set_cpu_level` says; None without the kernels."""
    return _text("qaig_cpu_level")


def set_cpu_level(level: str) -> None:
    """Makes the kernels run at `level` from the next call on, in the whole process.

    Raises:
        RuntimeError: without the kernels.
        ValueError: if `level` is not a level, or not one this processor can run.
    """
    library = _load().library
    if library is None:
        raise RuntimeError(f"the CPU level cannot be set, there are no compiled kernels: {why_not()}")
    status = library.qaig_set_cpu_level(level.encode())
    if status == 1:
        raise ValueError(f'level must be "portable", "avx2" or "avx512", got "{level}"')
    if status != 0:
        raise ValueError(f'level "{level}" is more than this processor can run: its best is "{best_cpu_level()}"')


def build() -> Path:
    """The library in the cache folder, compiled if it is not there yet.

    Raises:
        CompileError: if something that compiling needs is missing or fails.
        OSError: if the cache folder cannot be written.
    """
    sources = compiler.find_sources(_PACKAGE)
    if sources is None:
        raise compiler.CompileError(f"{_PACKAGE} has no csrc folder: reinstall transformers-qaig")
    found = compiler.find_compiler()
    if found is None:
        raise compiler.CompileError(f"no C++ compiler that runs: {_REMEDY}")
    cache = Path(os.environ.get("QAIG_CACHE") or "~/.cache/transformers_qaig").expanduser()
    folder = cache / compiler.cache_key(sources, found)
    library = folder / compiler.LIBRARY_NAME
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not library.is_file():  # another process may have compiled it while this one waited
                _logger.info("Compiling the kernels into %s, once: this may take a minute", folder)
                compiler.compile_library(sources, Path(torch.__file__).parent, found, library)
    return library


def _text(function: str) -> str | None:
    library = _load().library
    return None if library is None else getattr(library, function)().decode()


def _load() -> Extension:
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _find()
    if _found.library is not None and (error := _found.library.qaig_cpu_level_error()):
        raise ValueError(error.decode())
    return _found


def _find() -> Extension:
    if os.environ.get("QAIG_DISABLE_EXTENSION", "0") not in ("", "0"):
        return Extension(reason="QAIG_DISABLE_EXTENSION is set")
    prebuilt = _PACKAGE / compiler.LIBRARY_NAME
    if prebuilt.is_file():
        try:
            return Extension(_open(prebuilt), prebuilt, "prebuilt")
        except OSError as error:
            _logger.warning(
                "%s does not load on torch %s, so another is compiled: %s", prebuilt, torch.__version__, error
            )
    try:
        path = build()
        return Extension(_open(path), path, "built at first use")
    except (OSError, compiler.CompileError) as error:
        _logger.warning("No compiled kernels, so quantized layers run in plain torch, which is slow: %s", error)
        return Extension(reason=str(error))


def _open(path: Path) -> ctypes.CDLL:
    """Loads a library, which registers its kernels with torch.

    Raises:
        OSError: if it does not load here.
    """
    library = ctypes.CDLL(str(path))
    for function in ("qaig_cpu_features", "qaig_cpu_best_level", "qaig_cpu_level", "qaig_cpu_level_error"):
        getattr(library, function).restype = ctypes.c_char_p
    library.qaig_set_cpu_level.argtypes = [ctypes.c_char_p]
    return library
