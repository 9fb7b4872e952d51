"""Gives torch an accelerator that is not there: device type "mtia", in the CPU's memory (`device.cpp`).

Once loaded it is `torch.accelerator.current_accelerator()` for the rest of the process. It counts the bytes of its
tensors.
"""

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

import torch
from filelock import FileLock
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).with_name("device.cpp")
DEVICE = "mtia"
_library: ctypes.CDLL | None = None


def load() -> None:
    """Before anything asks torch what accelerator there is: the answer is kept."""
    global _library
    path = _build()
    torch.ops.load_library(path)
    _library = ctypes.CDLL(str(path))
    for function in (_library.bytes_in_use, _library.peak_bytes):
        function.restype = ctypes.c_int64
    _library.reset_peak.restype = None
    torch.mtia._lazy_init = lambda: None  # this torch has nothing to initialize
    if torch.accelerator.current_accelerator() != torch.device(DEVICE):
        raise RuntimeError("the pretended accelerator came too late.")


def bytes_in_use() -> int:
    """Of all tensors on the device, whatever they are for."""
    return _loaded().bytes_in_use()


def peak_bytes() -> int:
    """The most bytes that were in use at once since [`reset_peak`], or since the device was loaded."""
    return _loaded().peak_bytes()


def reset_peak() -> None:
    """The peak is what is in use now."""
    _loaded().reset_peak()


def _loaded() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError("there is no pretended accelerator yet: call load().")
    return _library


def _build() -> Path:
    """The library, compiled once for this source and this torch (a minute)."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("QAIG_CACHE", "~/.cache/transformers_qaig")).expanduser() / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"accelerator-{key}.so"
    with FileLock(f"{library}.lock"):
        if not library.exists():
            partial = library.with_suffix(".tmp")
            flags = [f"-isystem{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
            command = ["c++", "-std=c++17", "-O0", "-shared", "-fPIC", str(SOURCE), "-o", str(partial), *flags]
            done = subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[:3000])
            partial.replace(library)
    return library
