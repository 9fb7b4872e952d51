"""Compiles the CUDA kernels for every architecture and prints what the machine code of each kernel holds.

    python tools/check_cuda.py [--archs 80,90] [--files w4.cu,mixed.cu]

Columns: registers of a thread, bytes of spills (stores and loads together), bytes of stack, and instructions: products
on tensor cores (HMMA; of integers IMMA), asynchronous copies (LDGSTS), 16-byte loads from shared memory (LDS.128), all.
Fails if something does not compile, spills, or lacks the tensor core products or the asynchronous copies its
architecture has.
nvcc is needed; without nvdisasm (pip install nvidia-cuda-nvdisasm) the instructions are not counted. No GPU is needed,
and none is used: this tells nothing about speed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers_qaig.kernels.compiler import CUDA_ARCHITECTURES

SOURCES = Path(__file__).parents[1] / "csrc"
KERNELS, HOST = SOURCES / "cuda" / "kernels", SOURCES / "cuda" / "host"
ARCHS = [name.removesuffix("+PTX") for name in CUDA_ARCHITECTURES]
NO_BFLOAT16, NO_COPIES = ("75",), ("75",)  # architectures without such instructions
NO_GEMM = ("75",)  # whose gemm kernels are empty
FLAGS = ("-std=c++17", "-O3", f"-I{SOURCES}")
INSTRUCTIONS = ("HMMA", "IMMA", "LDGSTS", "LDS.128")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default=",".join(ARCHS))
    parser.add_argument("--files", default=",".join(sorted(path.name for path in KERNELS.glob("*.cu"))))
    args = parser.parse_args()
    nvcc, nvdisasm = find("nvcc"), find("nvdisasm")
    if nvcc is None:
        print("check_cuda: skipped, there is no nvcc")
        return 0
    jobs = [(file, arch) for file in args.files.split(",") for arch in args.archs.split(",")]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        hosts = [pool.submit(compile_host, nvcc, file, folder) for file in sorted(HOST.glob("*.cu"))]
        results = [pool.submit(inspect, nvcc, nvdisasm, file, arch, folder) for file, arch in jobs]
        columns = ["registers", "spills", "stack", *(INSTRUCTIONS if nvdisasm else ()), *(["all"] if nvdisasm else [])]
        print(f"{'kernel':32} {'arch':>4} " + " ".join(f"{name:>9}" for name in columns))
        faults = [fault for host in hosts for fault in host.result()]
        for future in results:
            for kernel, arch, row in future.result():
                print(f"{kernel:32} {arch:>4} " + " ".join(f"{row[name]:>9}" for name in columns), flush=True)
                faults += [f"{kernel}, sm_{arch}: {fault}" for fault in faults_of(kernel, arch, row)]
    for fault in faults:
        print(f"check_cuda: {fault}", file=sys.stderr)
    return 1 if faults else 0


def find(program: str) -> str | None:
    """On the PATH, in the CUDA toolkit, or in a package of this Python."""
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / program
    places = [shutil.which(program), str(toolkit), *map(str, sorted(site.glob(f"*/bin/{program}"), reverse=True))]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def compile_host(nvcc: str, file: Path, folder: str) -> list[str]:
    command = [nvcc, *FLAGS, "-c", str(file), "-o", f"{folder}/{file.name}.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [f"{file.name} does not compile: {done.stderr[:2000]}"] if done.returncode else []


def inspect(
    nvcc: str, nvdisasm: str | None, file: str, arch: str, folder: str
) -> list[tuple[str, str, dict[str, int]]]:
    """(kernel, architecture, figures) for each kernel of a file.

    Raises:
        RuntimeError: if it does not compile.
    """
    cubin = f"{folder}/{file}.{arch}.cubin"
    command = [nvcc, *FLAGS, "-Xptxas=-v", f"-arch=sm_{arch}", "-cubin", str(KERNELS / file), "-o", cubin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{file} does not compile for sm_{arch}: {done.stderr[:2000]}")
    rows = dict(resources(done.stderr))
    for kernel, text in disassembled(nvdisasm, cubin) if nvdisasm else ():
        operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", text)
        for name in INSTRUCTIONS:
            rows[kernel][name] = sum(set(name.split(".")) <= set(o.split(".")) for o in operations)
        rows[kernel]["all"] = len(operations)
    return [(kernel, arch, row) for kernel, row in sorted(rows.items())]


def resources(log: str) -> Iterator[tuple[str, dict[str, int]]]:
    """What ptxas says of each kernel."""
    for part in log.split("Compiling entry function '")[1:]:
        stack, stores, loads = map(
            int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()
        )
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        yield part.split("'")[0], {"registers": registers, "spills": stores + loads, "stack": stack}


def disassembled(nvdisasm: str, cubin: str) -> Iterator[tuple[str, str]]:
    text = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
    for part in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        yield re.match(r"\w+", part)[0], part


def faults_of(kernel: str, arch: str, row: dict[str, int]) -> Iterator[str]:
    if row["spills"]:
        yield f"spills {row['spills']} bytes"
    kind = next((kind for kind in ("gemv", "gemm_f16", "gemm_i8") if f"_{kind}_" in kernel), None)
    if kind is None or (kind != "gemv" and arch in NO_GEMM) or "HMMA" not in row:
        return
    no_product = "_bf16_" in kernel and arch in NO_BFLOAT16
    if not row["IMMA" if kind == "gemm_i8" else "HMMA"] and not no_product:
        yield "has no tensor core products"
    if not row["LDGSTS"] and arch not in NO_COPIES:
        yield "has no asynchronous copies"


if __name__ == "__main__":
    sys.exit(main())
