"""Compiles the kernels with NVRTC (cuda-bindings) at first use, one kernel at a time, and keeps the cubins.

NVRTC needs no GPU, no CUDA toolkit and no host compiler. A cubin lies in the cache folder (`cache.py`) under a name
made of the sources, NVRTC's version, the options and the architecture; another process finds it there.
"""

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import torch

from ...utils.logging import get_logger, tqdm
from .. import cache, compiler

_OPTIONS = ("--std=c++17",)
_REMEDY = 'pip install "transformers-qaig[cuda]" (CUDA 12: [cuda12])'
_TYPES = {"f16": "F16", "bf16": "BF16"}

_logger = get_logger(__name__)


class NvrtcError(RuntimeError):
    """The reason why NVRTC cannot make the kernels."""


def cubin(kernel: str, capability: int) -> bytes:
    """Returns the binary of one kernel.

    Args:
        kernel: its name, as in `csrc/cuda/arguments.h`.
        capability: the GPU's compute capability, 90 for 9.0.

    Raises:
        NvrtcError: NVRTC is missing, does not support the architecture, or refuses the source.
        OSError: the cache folder cannot be written, or others can write it.
    """
    folder, key = _sources(), _key()
    architecture = choose_architecture(capability, supported_architectures())

    def compile_to(unfinished: Path) -> None:
        _logger.info("Compiling %s for sm_%d, once", kernel, architecture)
        with tqdm(total=1, desc=f"Compiling {kernel} for sm_{architecture}, once", unit="kernel") as bar:
            unfinished.write_bytes(_compile(_source_of(kernel, folder), kernel, architecture, folder))
            bar.update()

    file = cache.cache_folder() / "cubins" / key / f"{kernel}.sm_{architecture}.cubin"
    return cache.cached_file(file, compile_to).read_bytes()


def choose_architecture(capability: int, supported: tuple[int, ...]) -> int:
    """Chooses the architecture to compile for: the GPU's, or the latest before it in its generation.

    The GPU runs code for earlier architectures of its generation, too.

    Raises:
        NvrtcError: there is none.
    """
    fitting = [a for a in supported if a <= capability and a // 10 == capability // 10]
    if not fitting:
        known = ", ".join(map(str, supported))
        raise NvrtcError(
            f"this NVRTC knows the architectures {known}, which do not run on compute capability {capability}"
        )
    return max(fitting)


def why_not() -> str | None:
    """Returns why NVRTC cannot be used here, with what to do; None if it can. Compiles nothing."""
    try:
        _nvrtc()
        _sources()
    except NvrtcError as error:
        return str(error)
    return cache.why_not_trusted()


def supported_architectures() -> tuple[int, ...]:
    """Lists the architectures that NVRTC compiles for. Raises `NvrtcError` without it."""
    nvrtc = _nvrtc()
    return tuple(_check(nvrtc, nvrtc.nvrtcGetSupportedArchs())[0])


def version() -> tuple[int, int]:
    """Returns NVRTC's version. Raises `NvrtcError` without it."""
    nvrtc = _nvrtc()
    major, minor = _check(nvrtc, nvrtc.nvrtcVersion())
    return major, minor


@functools.cache
def _nvrtc() -> Any:
    """Returns the bindings, once they have found a library that fits torch."""
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise NvrtcError(f"cuda-bindings is not installed ({error}): {_REMEDY}") from error
    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:
        raise NvrtcError(f"cuda-bindings finds no NVRTC library: {_REMEDY}") from error
    if int(status) != 0:
        raise NvrtcError(f"NVRTC does not tell its version: {status}")
    cuda = torch.version.cuda
    if cuda is not None and int(cuda.split(".")[0]) != major:
        raise NvrtcError(
            f"NVRTC is of CUDA {major}.{minor} but torch of {cuda}, and a driver may know one and not the other: "
            f"{_REMEDY}"
        )
    return nvrtc


@functools.cache
def _sources() -> Path:
    sources = compiler.find_sources(Path(__file__).parents[2])
    if sources is None or not (sources / "cuda" / "arguments.h").is_file():
        raise NvrtcError("the package has no csrc/cuda folder: reinstall transformers-qaig")
    return sources


@functools.cache
def _key() -> str:
    digest = hashlib.sha256(repr((version(), _OPTIONS)).encode())
    folder = _sources() / "cuda"
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".cu", ".cuh", ".h"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:20]


def _source_of(kernel: str, folder: Path) -> str:
    """Makes a program with this kernel alone: a file of `csrc/cuda` has several, and each takes seconds."""
    kernels = folder / "cuda" / "kernels"
    if found := re.fullmatch(r"qaig_gemv_(?:w([2348])|mixed)_(b?f16)_m(8|16)", kernel):
        bits, dtype, columns = found.groups()
        width = bits or "qaig::cuda::kMixedBits"
        return f"{_include('gemv')}QAIG_GEMV_KERNEL({kernel}, {_TYPES[dtype]}, {width}, {columns})\n"
    if found := re.fullmatch(r"qaig_(gemm_f16|gemm_i8)_w([2348])_(b?f16)", kernel):
        kind, bits, dtype = found.groups()
        return f"{_include(kind)}QAIG_{kind.upper()}_KERNEL({kernel}, {_TYPES[dtype]}, {bits})\n"
    if found := re.fullmatch(r"qaig_dequantize_w([2348])", kernel):
        return f"{_include('dequantize')}QAIG_DEQUANTIZE_KERNEL({found[1]})\n"
    if kernel in ("qaig_quantize_activations_f16", "qaig_quantize_activations_bf16"):
        return (kernels / "quantize_activations.cu").read_text()
    if kernel == "qaig_gptq_columns":
        return (kernels / "gptq_columns.cu").read_text()
    raise NvrtcError(f"there is no kernel {kernel}")


def _include(header: str) -> str:
    return f'#include "cuda/kernels/{header}.cuh"\n'


def _compile(source: str, kernel: str, architecture: int, folder: Path) -> bytes:
    nvrtc = _nvrtc()
    options = [*_OPTIONS, f"--gpu-architecture=sm_{architecture}", f"-I{folder}"]
    (program,) = _check(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), f"{kernel}.cu".encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if int(status) != 0:
            (size,) = _check(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
            log = bytearray(size)
            _check(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
            raise NvrtcError(f"NVRTC refuses {kernel} for sm_{architecture}: {log.decode(errors='replace')[:2000]}")
        (size,) = _check(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        binary = bytearray(size)
        _check(nvrtc, nvrtc.nvrtcGetCUBIN(program, binary))
        return bytes(binary)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _check(nvrtc: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the values of a call, without its status."""
    status, *values = result
    if int(status) != 0:
        raise NvrtcError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return tuple(values)
