"""nvcc's part in the build: when it is asked, for which GPUs, and what happens if it fails. No test needs a GPU."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from transformers_qaig.kernels import compilation, compiler, extension

# The fixture's package has no kernels; this stands for them.
KERNEL = """
#include <cuda_runtime.h>
__global__ void twice(float* x) { x[threadIdx.x] *= 2; }
extern "C" __attribute__((visibility("default"))) int qaig_stub_launch(float* x) {
    twice<<<1, 32>>>(x);
    return cudaGetLastError();
}
"""

needs_nvcc = pytest.mark.skipif(compiler.find_nvcc() is None, reason="needs nvcc")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Says what kind of torch and which GPUs there are; nvcc is whatever the machine has."""
    monkeypatch.delenv("QAIG_CUDA", raising=False)
    monkeypatch.delenv("QAIG_CUDA_ARCHS", raising=False)

    def set_up(cuda: str | None, gpus: tuple[str, ...] = ()):
        (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda!r}\nhip = None\n")
        monkeypatch.setattr(compilation, "_TORCH", tmp_path)
        monkeypatch.setattr(compilation, "_local_architectures", lambda: gpus)

    return set_up


@pytest.fixture
def nvcc_13(monkeypatch):
    found = compiler.Nvcc(("nvcc",), "nvcc 13.0", "13.0")
    monkeypatch.setattr(compiler, "find_nvcc", lambda: found)
    return found


def fake_nvcc(path: Path, version: str, architectures: str, body: str = "exit 1") -> str:
    path.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "Cuda compilation tools, release {version}, V{version}.88"; exit 0;;\n'
        f'--list-gpu-arch) printf "{architectures}"; exit 0;; esac\n{body}\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "architectures"),
    [
        ("80;90", ("80", "90")),
        ("sm_86, 8.9 120", ("86", "89", "120")),
        ("9.0+PTX;90a", ("90+PTX", "90a")),
    ],
)
def test_architectures_from_the_environment(monkeypatch, text, architectures):
    monkeypatch.delenv("QAIG_CUDA", raising=False)
    monkeypatch.setenv("QAIG_CUDA_ARCHS", text)
    assert compiler.cuda_request() == architectures


def test_an_architecture_that_is_none(monkeypatch, caplog):
    monkeypatch.delenv("QAIG_CUDA", raising=False)
    for text in ("hopper", "9", "90;-rdc", "80 $(ls)"):
        monkeypatch.setenv("QAIG_CUDA_ARCHS", text)
        with pytest.raises(compiler.CompileError, match='is no architecture: write "80;90"'):
            compiler.cuda_request()
    nvcc, reason = compilation.choose_nvcc()
    assert nvcc is None
    assert "QAIG_CUDA_ARCHS" in reason


def test_when_nvcc_is_asked(machine, nvcc_13, monkeypatch):
    def chosen():
        nvcc, reason = compilation.choose_nvcc()
        return nvcc.architectures if nvcc else reason

    machine(cuda=None, gpus=("90",))
    assert "built without CUDA" in chosen()
    machine(cuda="13.0", gpus=("89", "90"))
    assert chosen() == ("89", "90")
    machine(cuda="13.0", gpus=())
    assert "finds no GPU" in chosen()
    machine(cuda="12.8", gpus=("90",))
    assert "nvcc is of CUDA 13.0 but torch of 12.8" in chosen()
    monkeypatch.setenv("QAIG_CUDA", "0")
    assert chosen() == "QAIG_CUDA=0"
    monkeypatch.setenv("QAIG_CUDA", "1")
    machine(cuda=None)
    assert chosen() == compiler.CUDA_ARCHITECTURES
    machine(cuda=None, gpus=("90",))
    assert chosen() == ("90",)
    monkeypatch.setenv("QAIG_CUDA_ARCHS", "80+PTX")
    assert chosen() == ("80+PTX",)


def test_finding_nvcc(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDACXX", fake_nvcc(tmp_path / "nvcc", "12.4", r"compute_80\ncompute_90\n"))
    found = compiler.find_nvcc()
    assert (found.version, found.architectures) == ("12.4", ("80", "90"))
    monkeypatch.delenv("CUDACXX")
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert compiler.find_nvcc() is None
    (tmp_path / "nvcc").rename(tmp_path / "toolkit" / "bin" / "nvcc")
    assert compiler.find_nvcc().command == (str(tmp_path / "toolkit" / "bin" / "nvcc"),)
    monkeypatch.setenv("CUDACXX", "false")
    assert compiler.find_nvcc() is None


def test_gpus_of_this_machine(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '9.0\\n8.9\\n9.0\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert compilation._local_architectures() == ("89", "90")
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver'; exit 9\n")
    assert compilation._local_architectures() == ()
    smi.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert compilation._local_architectures() == ()


def test_the_key_names_what_nvcc_depends_on(tmp_path):
    (tmp_path / "k.cu").write_text("1")
    cxx = compiler.Compiler(("g++",), "12")
    nvcc = [compiler.Nvcc(("nvcc",), "13.0", "13.0", a) for a in (("80",), ("80", "90"))]
    nvcc.append(compiler.Nvcc(("nvcc",), "13.1", "13.1", ("80",)))
    keys = [compiler.cache_key(tmp_path, cxx)] + [compiler.cache_key(tmp_path, cxx, n) for n in nvcc]
    (tmp_path / "k.cu").write_text("2")
    assert compiler.cache_key(tmp_path, cxx) == keys[0]  # without nvcc nobody reads it
    keys.append(compiler.cache_key(tmp_path, cxx, nvcc[0]))
    (tmp_path / "k.cuh").write_text("")
    keys.append(compiler.cache_key(tmp_path, cxx, nvcc[0]))
    assert len(set(keys)) == len(keys)


@needs_nvcc
def test_one_library_with_both(package, monkeypatch, caplog):
    """Compiled by the real nvcc, it loads where there is neither a GPU nor a torch with CUDA."""
    (package / "csrc" / "kernel.cu").write_text(KERNEL)
    monkeypatch.setenv("QAIG_CUDA_ARCHS", "80;90+PTX")
    assert extension.load(), extension.why_not()
    assert extension.cuda_architectures() == ("80", "90+PTX")
    assert extension.why_not_cuda() is None
    assert extension.cpu_isa() == extension.best_cpu_isa()
    library = ctypes.CDLL(str(extension.library_path()))
    assert library.qaig_stub_launch(None) != 0 or os.path.exists("/dev/nvidia0")
    needed = subprocess.run(["ldd", extension.library_path()], capture_output=True, text=True).stdout
    assert "libcuda" not in needed
    assert [r for r in caplog.records if r.levelname == "WARNING"] == []


@needs_nvcc
def test_an_nvcc_that_fails(package, monkeypatch, caplog, compilations):
    """The CPU's kernels are there, the reason too, and the next process does not wait for the failure again."""
    (package / "csrc" / "kernel.cu").write_text("#error this kernel is broken\n")
    monkeypatch.setenv("QAIG_CUDA_ARCHS", "90")
    for _ in range(2):
        assert extension.load()
        assert extension.cuda_architectures() == ()
        assert "this kernel is broken" in extension.why_not_cuda()
        monkeypatch.setattr(extension, "_found", None)
    assert len(compilations) == 2  # with nvcc and without, once each
    assert "compiled for the CPU alone" in caplog.text
    assert "to try again" in extension.why_not_cuda()


@needs_nvcc
def test_a_prebuilt_library_without_cuda(package, prebuild, monkeypatch):
    """It is used, unless one with CUDA kernels can be compiled."""
    prebuild(compilation.build())
    assert extension.load()
    assert (extension.origin(), extension.why_not_cuda()) == ("prebuilt", "it was built without nvcc")
    (package / "csrc" / "kernel.cu").write_text(KERNEL)
    monkeypatch.setenv("QAIG_CUDA_ARCHS", "90")
    monkeypatch.setattr(extension, "_found", None)
    assert extension.load()
    assert (extension.origin(), extension.cuda_architectures()) == ("built at first use", ("90",))
