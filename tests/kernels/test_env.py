import platform
from types import SimpleNamespace

import pytest
import torch

from transformers_qaig.kernels import cuda, env, extension


@pytest.fixture
def kernels(monkeypatch):
    """A machine that can run AVX-512, with kernels for every operator, with an instruction set to be chosen."""
    chosen = {"isa": "avx512", "best": "avx512", "isas": extension.CPU_ISAS[:4]}
    monkeypatch.setattr(extension, "load", lambda: True)
    monkeypatch.setattr(extension, "why_not", lambda: None)
    monkeypatch.setattr(extension, "cpu_isa", lambda: chosen["isa"])
    monkeypatch.setattr(extension, "best_cpu_isa", lambda: chosen["best"])
    monkeypatch.setattr(extension, "cpu_isas", lambda: chosen["isas"])
    monkeypatch.setattr(extension, "cpu_features", lambda: ("avx2", "fma"))
    monkeypatch.setattr(extension, "library_path", lambda: "/somewhere/_C.abi3.so")
    monkeypatch.setattr(extension, "origin", lambda: "prebuilt")
    monkeypatch.setattr(extension, "why_not_cuda", lambda: "no nvcc")
    monkeypatch.setattr(extension, "has_kernel", lambda op, device: True)
    monkeypatch.delenv("QAIG_CPU_ISA", raising=False)
    monkeypatch.delenv("QAIG_CPU_LEVEL", raising=False)
    return chosen


def backends(op, device):
    return {b.case: b for b in env.collect().backends if (b.op, b.device) == (op, device)}


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(extension, "_found", extension.Extension(reason="no compiler"))
    monkeypatch.setattr(extension, "has_kernel", lambda op, device: False)
    found = env.collect()
    assert found.library is None
    assert {b.name for b in found.backends} == {"reference"}
    compiled = [b for b in found.backends if b.device == "cpu"]
    assert all(b.why_not_faster == "no compiler" for b in compiled)
    assert "none (no compiler)" in str(found)


def test_every_operator_on_every_device(kernels):
    found = {(b.op, b.device) for b in env.collect().backends}
    assert {(op, device) for op in env.OPS for device in ("cpu", "cuda")} <= found


def test_widths_and_dtypes(kernels):
    cases = backends("linear", "cpu")
    assert cases["bits 2, 3, 4, 8"].name == "cpu (avx512)"
    assert "lacks part of what amx needs" in cases["bits 2, 3, 4, 8"].why_not_faster
    assert "widened to 8 bits" in cases["bits 5, 6, 7"].why_not_faster
    assert cases["float64 input"].name == "reference"
    for op in ("embedding", "gptq_columns"):
        assert [(b.case, b.name) for b in backends(op, "cpu").values()] == [("every call", "cpu (portable)")]


def test_why_not_a_better_instruction_set(kernels, monkeypatch):
    kernels["isa"] = "avx2"
    assert "set below the best, avx512" in backends("linear", "cpu")["bits 2, 3, 4, 8"].why_not_faster
    for variable in ("QAIG_CPU_LEVEL", "QAIG_CPU_ISA"):
        monkeypatch.setenv(variable, "avx2")
        assert backends("linear", "cpu")["bits 2, 3, 4, 8"].why_not_faster == f"{variable}=avx2"
    kernels["isa"], kernels["isas"] = "avx512", extension.CPU_ISAS[:5]
    assert "amx is emulated" in backends("linear", "cpu")["bits 2, 3, 4, 8"].why_not_faster
    kernels["isa"] = "avx2"
    kernels["best"], kernels["isas"] = "avx2", ("portable", "avx2")
    assert "what avxvnni needs" in backends("linear", "cpu")["bits 2, 3, 4, 8"].why_not_faster


def test_cuda_is_not_claimed(kernels, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (backend,) = backends("linear", "cuda").values()
    assert backend.name == "reference"
    assert "no CUDA device" in backend.why_not_faster
    report = str(env.collect())
    assert report.count("torch sees no CUDA device") == 1
    assert "reference          below: plain torch, in the place of a kernel of this package" in report


@pytest.fixture
def gpu(kernels, monkeypatch):
    """A machine with an H100; sets what its kernels come from."""
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)

    def answer(origin, **reasons):
        monkeypatch.setattr(cuda, "choice", lambda capability: cuda.Choice(origin, reasons))

    return answer


def test_who_answers_on_a_gpu(gpu):
    gpu(cuda.LIBRARY)
    cases = backends("linear", "cuda")
    assert cases["sm_90, bits 2, 3, 4, 8"].name == "cuda (library)"
    assert cases["sm_90, bits 2, 3, 4, 8"].why_not_faster is None
    assert cases["sm_90, bits 5, 6, 7"].name == "reference"
    assert not any("rounded to 8 bits" in case for case in cases)  # kernels or cuBLAS, however many rows
    for op in ("linear_grad_input", "embedding"):
        assert [b.name for b in backends(op, "cuda").values()] == ["reference"]
    assert [b.name for b in backends("gptq_columns", "cuda").values()] == ["cuda (library)"]
    gpu(cuda.NVRTC, library="no nvcc")
    case = backends("linear_many", "cuda")["sm_90, bits 2, 3, 4, 8"]
    assert (case.name, case.why_not_faster) == ("cuda (NVRTC)", "library: no nvcc")
    gpu(None, library="no nvcc", NVRTC="not installed")
    (case,) = backends("linear", "cuda").values()
    assert (case.name, case.why_not_faster) == ("reference", "library: no nvcc; NVRTC: not installed")
    assert "NVIDIA H100, sm_90, 80 GiB" in str(env.collect())


def test_only_gpus_that_were_there_are_claimed(kernels):
    """Whoever runs the kernels on another GPU changes `EXECUTED_ON`, this test and the README."""
    assert cuda.EXECUTED_ON == ("sm_90 (H200)",)
    assert "CUDA ran on        sm_90 (H200); for others compiled" in str(env.collect())


def test_the_report(kernels):
    report = str(env.collect())
    for part in (
        torch.__version__,
        platform.python_version(),
        "avx2 fma",
        "avx512 (of portable, avx2, avxvnni, avx512)",
        "(prebuilt)",
    ):
        assert part in report
    assert "linear on cpu, bits 5, 6, 7: cpu (avx512)" in report
