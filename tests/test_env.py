import platform

import pytest
import torch

from transformers_qaig import env, extension


@pytest.fixture
def kernels(monkeypatch):
    """A machine that can run AVX-512, with kernels for every operator, at a level to be set."""
    chosen = {"level": "avx512", "best": "avx512"}
    monkeypatch.setattr(extension, "load", lambda: True)
    monkeypatch.setattr(extension, "why_not", lambda: None)
    monkeypatch.setattr(extension, "cpu_level", lambda: chosen["level"])
    monkeypatch.setattr(extension, "best_cpu_level", lambda: chosen["best"])
    monkeypatch.setattr(extension, "cpu_features", lambda: ("avx2", "fma"))
    monkeypatch.setattr(extension, "library_path", lambda: "/somewhere/_C.abi3.so")
    monkeypatch.setattr(extension, "origin", lambda: "prebuilt")
    monkeypatch.setattr(env, "_has_cpu_kernel", lambda op: True)
    monkeypatch.delenv("QAIG_CPU_LEVEL", raising=False)
    return chosen


def backends(op, device):
    return {b.case: b for b in env.collect().backends if (b.op, b.device) == (op, device)}


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(extension, "_found", extension.Extension(reason="no compiler"))
    monkeypatch.setattr(env, "_has_cpu_kernel", lambda op: False)
    found = env.collect()
    assert found.library is None
    assert {b.name for b in found.backends} == {"reference"}
    assert all(b.why_not_faster == "no compiler" for b in found.backends if b.device == "cpu")
    assert "none (no compiler)" in str(found)


def test_every_operator_on_every_device(kernels):
    found = {(b.op, b.device) for b in env.collect().backends}
    assert {(op, device) for op in env.OPS for device in ("cpu", "cuda")} <= found


def test_widths_and_dtypes(kernels):
    cases = backends("linear", "cpu")
    assert (cases["bits 2, 3, 4, 8"].name, cases["bits 2, 3, 4, 8"].why_not_faster) == ("cpu (avx512)", None)
    assert "expanded to 8 bits" in cases["bits 5, 6, 7"].why_not_faster
    assert cases["float64 input"].name == "reference"


def test_why_not_a_higher_level(kernels, monkeypatch):
    kernels["level"] = "avx2"
    assert "set below the best, avx512" in backends("linear", "cpu")["bits 2, 3, 4, 8"].why_not_faster
    monkeypatch.setenv("QAIG_CPU_LEVEL", "avx2")
    assert backends("linear", "cpu")["bits 2, 3, 4, 8"].why_not_faster == "QAIG_CPU_LEVEL=avx2"
    kernels["best"] = "avx2"
    assert "level avx512 needs" in backends("linear", "cpu")["bits 2, 3, 4, 8"].why_not_faster


def test_cuda_is_not_claimed(kernels):
    (backend,) = backends("linear", "cuda").values()
    assert backend.name == "reference"
    assert "no CUDA kernels yet" in backend.why_not_faster


def test_the_report(kernels):
    report = str(env.collect())
    for part in (torch.__version__, platform.python_version(), "avx2 fma", "avx512 (best: avx512)", "(prebuilt)"):
        assert part in report
    assert "linear on cpu, bits 5, 6, 7: cpu (avx512)" in report
