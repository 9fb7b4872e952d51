"""Kernels up to the cubin, which needs no GPU: `make nvrtc` installs what these tests need (350 MB)."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from transformers_qaig.kernels.cuda import nvrtc

GEMV = [f"qaig_gemv_{w}_{t}_m{m}" for w in ("w2", "w3", "w4", "w8", "mixed") for t in ("f16", "bf16") for m in (8, 16)]
GEMM = [
    f"qaig_{kernel}_w{bits}_{t}" for kernel in ("gemm_f16", "gemm_i8") for bits in (2, 3, 4, 8) for t in ("f16", "bf16")
]
QUANTIZE, QUANTIZE_BF16 = "qaig_quantize_activations_f16", "qaig_quantize_activations_bf16"
OTHERS = [*(f"qaig_dequantize_w{b}" for b in (2, 3, 4, 8)), QUANTIZE, QUANTIZE_BF16, "qaig_gptq_columns"]
KERNELS = [*GEMV, *GEMM, *OTHERS]
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

installed = nvrtc.why_not() is None
needs_nvrtc = pytest.mark.skipif(not installed, reason="needs cuda-bindings and nvidia-cuda-nvrtc (make nvrtc)")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("QAIG_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def compilations(monkeypatch):
    """Names of the kernels that were compiled."""
    compiled, real = [], nvrtc._compile

    def count(source, kernel, architecture, folder):
        compiled.append(kernel)
        return real(source, kernel, architecture, folder)

    monkeypatch.setattr(nvrtc, "_compile", count)
    return compiled


@needs_nvrtc
@pytest.mark.parametrize(
    "kernel",
    [QUANTIZE, QUANTIZE_BF16, "qaig_dequantize_w3", "qaig_gptq_columns"],
)
@pytest.mark.parametrize("capability", [75, 90])
def test_cubins(kernel, capability):
    cubin = nvrtc.cubin(kernel, capability)
    assert cubin.startswith(b"\x7fELF")
    assert f".text.{kernel}".encode() in cubin


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize(
    "kernel",
    [
        "qaig_gemv_w4_bf16_m8",
        "qaig_gemv_w3_f16_m16",
        "qaig_gemv_mixed_bf16_m8",
        "qaig_gemm_f16_w3_bf16",
        "qaig_gemm_f16_w8_f16",
        "qaig_gemm_i8_w3_f16",
        "qaig_gemm_i8_w8_bf16",
    ],
)
def test_cubins_with_tensor_core_products(kernel, capability):
    cubin = nvrtc.cubin(kernel, capability)
    assert f".text.{kernel}".encode() in cubin


@needs_nvrtc
def test_compiles_once(cache, compilations):
    """Threads stand for processes: the lock is a file's."""
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: nvrtc.cubin(QUANTIZE, 90), range(3))
    assert others == [first, first]
    assert compilations == [QUANTIZE]
    left = [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(left) == [
        f"{QUANTIZE}.sm_90.cubin",
        f"{QUANTIZE}.sm_90.cubin.sha256",
    ]


def test_a_damaged_cubin_is_compiled_again(cache, monkeypatch, caplog):
    compiled = []
    monkeypatch.setattr(nvrtc, "_compile", lambda *args: compiled.append(args) or b"cubin")
    monkeypatch.setattr(nvrtc, "_key", lambda: "key")
    monkeypatch.setattr(nvrtc, "supported_architectures", lambda: ARCHITECTURES)
    assert nvrtc.cubin(QUANTIZE, 90) == nvrtc.cubin(QUANTIZE, 90) == b"cubin"
    assert len(compiled) == 1
    (file,) = cache.rglob("*.cubin")
    file.write_bytes(b"cub")
    assert nvrtc.cubin(QUANTIZE, 90) == b"cubin"
    assert len(compiled) == 2
    assert str(file) in caplog.text


def test_a_cache_that_others_can_write_is_no_place_for_cubins(cache, monkeypatch):
    cache.chmod(0o777)
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: None)
    assert "QAIG_CACHE" in nvrtc.why_not()


@needs_nvrtc
def test_the_key_names_what_a_cubin_depends_on(monkeypatch, tmp_path):
    def key():
        nvrtc._key.cache_clear()
        return nvrtc._key()

    try:
        keys = [key()]
        monkeypatch.setattr(nvrtc, "version", lambda: (99, 1))
        keys.append(key())
        monkeypatch.setattr(nvrtc, "_OPTIONS", ("--std=c++20",))
        keys.append(key())
        header = tmp_path / "cuda" / "device" / "kernel.cuh"
        header.parent.mkdir(parents=True)
        header.write_text("1")
        monkeypatch.setattr(nvrtc, "_sources", lambda: tmp_path)
        keys.append(key())
        header.write_text("2")
        keys.append(key())
        (header.parent / "notes.txt").write_text("no source")
        assert key() == keys[-1]
        assert len(set(keys)) == len(keys)
    finally:
        nvrtc._key.cache_clear()


@needs_nvrtc
def test_says_what_nvrtc_said(monkeypatch, cache):
    monkeypatch.setattr(nvrtc, "_source_of", lambda kernel, folder: "#error this kernel is broken")
    with pytest.raises(nvrtc.NvrtcError, match="this kernel is broken"):
        nvrtc.cubin(QUANTIZE, 90)
    assert [path for path in cache.rglob("*.cubin*") if path.suffix != ".lock"] == []


@needs_nvrtc
def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QAIG_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        nvrtc.cubin(QUANTIZE, 90)


@needs_nvrtc
def test_another_cuda_than_torchs(monkeypatch):
    nvrtc._nvrtc.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "1.0")
    try:
        assert "but torch of 1.0" in nvrtc.why_not()
    finally:
        nvrtc._nvrtc.cache_clear()


def test_every_kernel_has_a_source():
    folder = nvrtc._sources()
    for kernel in KERNELS:
        assert kernel in nvrtc._source_of(kernel, folder) or kernel.startswith("qaig_dequantize")
    for name in (
        "qaig_gemv_w5_f16_m8",
        "qaig_gemm_f16_mixed_f16",
        "qaig_gemm_i8_w5_f16",
        "qaig_gemv_w4_f16_m8) evil(",
        "main",
    ):
        with pytest.raises(nvrtc.NvrtcError, match="there is no kernel"):
            nvrtc._source_of(name, folder)


def test_architectures():
    known = ARCHITECTURES
    assert [nvrtc.choose_architecture(c, known) for c in (75, 80, 87, 90, 103, 121)] == [75, 80, 86, 90, 100, 120]
    for capability in (70, 110, 130):
        with pytest.raises(nvrtc.NvrtcError, match="knows the architectures 75, 80"):
            nvrtc.choose_architecture(capability, known)


def test_not_installed(monkeypatch):
    """`None` in sys.modules is how Python says that a module cannot be imported."""
    nvrtc._nvrtc.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    try:
        assert 'pip install "transformers-qaig[cuda]"' in nvrtc.why_not()
        with pytest.raises(nvrtc.NvrtcError, match="cuda-bindings is not installed"):
            nvrtc.cubin(QUANTIZE, 90)
    finally:
        nvrtc._nvrtc.cache_clear()


def test_nothing_imports_cuda_python_before_it_is_needed():
    # torch itself imports the bindings of the driver where they are installed.
    program = "import sys, transformers_qaig.kernels.env; print('cuda.bindings.nvrtc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "False", done.stderr


@needs_nvrtc
def test_registers_beside_the_compiled_library():
    program = (
        "import torch; from transformers_qaig.kernels import cuda, extension; from transformers_qaig.nn import ops; "
        "cuda._register(); "
        "print([extension.has_kernel(op, 'cuda') for op in ('linear', 'linear_many', 'dequantize', 'repack')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[True, True, True, True]", done.stderr
