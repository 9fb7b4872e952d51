"""Compiles `csrc/` into one shared library: used by `setup.py`, and by `extension.py` at first use.

The C++ compiler makes the operators and the CPU's kernels. nvcc, where it is found and wanted, adds CUDA's to the same
library. The CUDA runtime is linked in, so that the library loads without a GPU and without CUDA, too.

Imports nothing but the standard library: `setup.py` runs this file where neither torch nor the package can be imported.
The library uses the stable ABI of torch and none of Python's, so one binary serves every Python and every torch from
`TORCH_TARGET` on.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
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
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120+PTX")
"""Architectures of a library for distribution: a binary for each, and PTX for those after the last."""

_PASSING = (
    "no space left|quota exceeded|file too large|read-only file system|out of memory|cannot allocate memory"
    r"|terminated|killed|status -\d"
)


class CompileError(RuntimeError):
    """The compiler failed; the message holds its output."""

    @property
    def may_pass(self) -> bool:
        """Whether another try can succeed: the disk or the memory was full, or the compiler was killed."""
        return re.search(_PASSING, str(self), re.IGNORECASE) is not None


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the words of its command, and its version and machine as it prints them."""

    command: tuple[str, ...]
    identity: str


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler, and what it compiles for.

    Attributes:
        command: the words of its command.
        identity: its version as it prints it.
        version: of its toolkit.
        architectures: to compile for, such as "90", "90a" or, to add PTX, "90+PTX".
    """

    command: tuple[str, ...]
    identity: str
    version: str
    architectures: tuple[str, ...] = CUDA_ARCHITECTURES


def find_compiler() -> Compiler | None:
    """Returns the compiler that `CXX` names, else the first of g++, clang++, c++ that runs, else None."""
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


def find_nvcc() -> Nvcc | None:
    """Returns the nvcc that `CUDACXX` names, else that of `CUDA_HOME`, `PATH` or /usr/local/cuda, else None.

    It compiles for those of `CUDA_ARCHITECTURES` that it supports.
    """
    named, home = os.environ.get("CUDACXX"), os.environ.get("CUDA_HOME")
    places = (
        [shlex.split(named)] if named else [[f"{home}/bin/nvcc"]] if home else [["nvcc"], ["/usr/local/cuda/bin/nvcc"]]
    )
    for command in places:
        if not command or shutil.which(command[0]) is None:
            continue
        said = [
            subprocess.run([*command, flag], capture_output=True, text=True, check=False)
            for flag in ("--version", "--list-gpu-arch")
        ]
        version = re.search(r"release (\d+\.\d+)", said[0].stdout)
        if all(answer.returncode == 0 for answer in said) and version:
            known = said[1].stdout.split()
            architectures = tuple(a for a in CUDA_ARCHITECTURES if f"compute_{a.removesuffix('+PTX')}" in known)
            return Nvcc(tuple(command), said[0].stdout.strip(), version[1], architectures)
    return None


def cuda_request() -> tuple[str, ...] | bool | None:
    """Reads what the environment says about CUDA kernels.

    Returns:
        the architectures that `QAIG_CUDA_ARCHS` lists ("80;90", "9.0 12.0+PTX"); without it True if `QAIG_CUDA` is set,
        None if it is not; False if that is "0", or "nvrtc", which makes them another way (cuda/__init__.py).

    Raises:
        CompileError: an architecture cannot be read.
    """
    wanted = os.environ.get("QAIG_CUDA", "")
    if wanted in ("0", "nvrtc"):
        return False
    words = re.split(r"[;,\s]+", os.environ.get("QAIG_CUDA_ARCHS", "").strip())
    architectures = []
    for word in filter(None, words):
        parts = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d[af]?)(\+PTX)?", word)
        if parts is None:
            raise CompileError(
                f'QAIG_CUDA_ARCHS has "{word}", which is no architecture: write "80;90", or "90+PTX" to add PTX'
            )
        architectures.append("".join(filter(None, parts.groups())))
    return tuple(architectures) or (True if wanted else None)


def torch_cuda_version(torch: Path) -> str | None:
    """Returns the CUDA version that an installed torch was built for, such as "13.0"; None if for none."""
    found = re.search(r"^cuda\b.*= '([\d.]+)'", (torch / "version.py").read_text(), re.MULTILINE)
    return found[1] if found else None


def choose_nvcc(torch: Path) -> tuple[Nvcc | None, str]:
    """Chooses the nvcc to compile CUDA kernels with, or says why there is none.

    Args:
        torch: the folder of an installed torch.

    Returns:
        the compiler and "", or None and the reason.

    Raises:
        CompileError: `QAIG_CUDA_ARCHS` cannot be read.
    """
    request, cuda = cuda_request(), torch_cuda_version(torch)
    if request is False:
        return None, f"QAIG_CUDA={os.environ['QAIG_CUDA']}"
    if request is None and cuda is None:
        return None, "this torch is built without CUDA (QAIG_CUDA=1 compiles the kernels all the same)"
    nvcc = find_nvcc()
    if nvcc is None:
        return None, "no nvcc: install the CUDA toolkit, or set CUDA_HOME or CUDACXX"
    if cuda is not None and cuda.split(".")[0] != nvcc.version.split(".")[0]:
        return None, f"nvcc is of CUDA {nvcc.version} but torch of {cuda}: a driver may know one and not the other"
    return (replace(nvcc, architectures=request) if isinstance(request, tuple) else nvcc), ""


def find_torch() -> Path | None:
    """Finds the folder of an installed torch that has its headers, without importing it; None if there is none.

    pip builds with the interpreter of the environment that it installs into, but hides that environment's packages. So
    its site-packages folder is searched, too: only headers and libraries of torch are needed.
    """
    spec = importlib.util.find_spec("torch")
    found = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    found += [Path(sysconfig.get_path(key)) / "torch" for key in ("platlib", "purelib")]
    for folder in found:
        if (folder / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return folder
    return None


def find_sources(package: Path) -> Path | None:
    """Returns the folder `csrc` of an installed package, or of the checkout that `package` lies in; or None."""
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "ops" / "cpu.cpp").is_file():
            return folder
    return None


def extra_flags() -> tuple[str, ...]:
    """Returns the words of `QAIG_CXXFLAGS`, for the compiler and the linker (sanitizers, debugging)."""
    return tuple(shlex.split(os.environ.get("QAIG_CXXFLAGS", "")))


def cache_key(sources: Path, compiler: Compiler, nvcc: Nvcc | None = None) -> str:
    """Names a build by a hash of everything that the library depends on: equal keys give equal libraries."""
    digest = hashlib.sha256()
    for part in (compiler.identity, *compiler.command, *FLAGS, *extra_flags(), TORCH_TARGET, sys.platform):
        digest.update(part.encode() + b"\0")
    digest.update(platform.machine().encode() + b"\0")
    if nvcc is not None:
        for part in (nvcc.identity, *nvcc.command, *NVCC_FLAGS, *nvcc.architectures):
            digest.update(part.encode() + b"\0")
    suffixes = (".cpp", ".h") if nvcc is None else (".cpp", ".h", ".cu", ".cuh")
    for path in sorted(sources.rglob("*")):
        if path.suffix in suffixes:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(sources)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:20]


def compile_library(sources: Path, torch: Path, compiler: Compiler, library: Path, nvcc: Nvcc | None = None) -> None:
    """Compiles every `.cpp` below `sources`, as many at once as there are processors, and links them into `library`.

    The library appears under its name complete or not at all, and nothing else stays behind.

    Args:
        sources: the folder `csrc`.
        torch: the folder of an installed torch.
        compiler: from `find_compiler`.
        library: the file to write; its folder is made.
        nvcc: compiles every `.cu`, too; the `.cpp` files then see `QAIG_CUDA_ARCHS`. None leaves CUDA out.

    Raises:
        CompileError: a file does not compile or the library does not link.
        OSError: the folder cannot be written.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-I{sources}", f"-isystem{torch / 'include'}"]
    flags += [f"-ffile-prefix-map={folder}={name}" for folder, name in ((sources, "csrc"), (torch, "torch"))]
    if nvcc is not None:
        flags.append(f'-DQAIG_CUDA_ARCHS="{" ".join(nvcc.architectures)}"')
    jobs = [([*compiler.command, *flags, *extra_flags()], file) for file in sorted(sources.rglob("*.cpp"))]
    # torch is already loaded when this library is, so it needs the name of torch's library, not its path.
    link, torch_libraries = (
        [*compiler.command, "-shared", "-pthread", *extra_flags()],
        [f"-L{torch / 'lib'}", "-ltorch_cpu"],
    )
    if nvcc is not None:
        through = [*nvcc.command, *_host_compiler(compiler)]
        # nvcc's files take longest, so they come first.
        jobs = [([*through, *_cuda_flags(nvcc), f"-I{sources}"], file) for file in sorted(sources.rglob("*.cu"))] + jobs
        host = [f"-Xcompiler={flag.replace(',', chr(92) + ',')}" for flag in ("-pthread", *extra_flags())]
        link = [*through, "-shared", "-cudart=static", *host]
    with tempfile.TemporaryDirectory(prefix=".unfinished-", suffix=f"-{library.name}", dir=library.parent) as folder:
        objects = [str(Path(folder) / f"{number}.o") for number in range(len(jobs))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            runs = [pool.submit(_run, [*words, "-c", str(f), "-o", o]) for (words, f), o in zip(jobs, objects)]
            try:
                for run in as_completed(runs):
                    run.result()
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure: do not compile the rest
        linked = Path(folder) / LIBRARY_NAME
        _run([*link, *objects, *torch_libraries, "-o", str(linked)])
        os.replace(linked, library)


def _host_compiler(compiler: Compiler) -> list[str]:
    """Returns nvcc's option for the host compiler. It takes one word; for more (`ccache g++`) nvcc finds one itself."""
    return [f"-ccbin={compiler.command[0]}"] if len(compiler.command) == 1 else []


def _cuda_flags(nvcc: Nvcc) -> list[str]:
    flags = list(NVCC_FLAGS)
    for architecture in nvcc.architectures:
        number = architecture.removesuffix("+PTX")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if number != architecture:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[:2000] or "it said nothing"
        raise CompileError(f"{shlex.join(command)} failed with status {done.returncode}: {said}")
