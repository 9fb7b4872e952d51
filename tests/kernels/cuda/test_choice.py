"""Which kernels a GPU gets, and what is said about those it does not get. No test needs a GPU."""

import logging

import pytest
import torch

from transformers_qaig.formats.packing import CUDA_LAYOUT
from transformers_qaig.kernels import cuda, extension
from transformers_qaig.kernels.cuda import nvrtc
from transformers_qaig.nn import ops

H100 = torch.device("cuda", 0)
WHY_NOT_CUDA, ARCHITECTURES = extension.why_not_cuda, extension.cuda_architectures


@pytest.fixture
def machine(monkeypatch):
    """An H100, a library with kernels for it, and an NVRTC that knows it; nothing is loaded or registered."""
    registered = []
    monkeypatch.setattr(cuda, "_choices", {})
    monkeypatch.setattr(cuda, "_register", lambda: registered.append(True))
    monkeypatch.setattr(cuda, "_capability", lambda device: 90)
    monkeypatch.setattr(cuda, "_library_refuses", lambda: None)
    monkeypatch.setattr(extension, "why_not_cuda", lambda: None)
    monkeypatch.setattr(extension, "cuda_architectures", lambda: ("80", "90"))
    monkeypatch.setattr(nvrtc, "why_not", lambda: None)
    monkeypatch.setattr(nvrtc, "supported_architectures", lambda: (80, 90))
    for name in ("QAIG_CUDA", "QAIG_DISABLE_EXTENSION"):
        monkeypatch.delenv(name, raising=False)
    return registered


def test_the_library_comes_first(machine, caplog):
    assert cuda.load(H100)
    assert cuda.choice(90) == cuda.Choice(cuda.LIBRARY, {})
    assert (machine, caplog.records) == ([], [])


@pytest.mark.parametrize(
    ("target", "name", "value", "reason"),
    [
        (extension, "why_not_cuda", "no nvcc", "no nvcc"),
        (extension, "cuda_architectures", ("75", "100"), "compiled for 75, 100, not for this GPU's 90"),
        (cuda, "_library_refuses", "the driver is too old", "the driver is too old"),
    ],
)
def test_then_nvrtc(machine, monkeypatch, caplog, target, name, value, reason):
    monkeypatch.setattr(target, name, lambda: value)
    assert cuda.load(H100)
    assert cuda.load(H100)
    assert cuda.choice(90) == cuda.Choice(cuda.NVRTC, {cuda.LIBRARY: reason})
    assert (machine, caplog.records) == ([True], [])


def test_nvrtc_needs_no_compiler(machine, monkeypatch):
    """Nothing was prebuilt and nothing can be compiled: a layer still gets the CUDA layout."""
    monkeypatch.setattr(extension, "why_not_cuda", WHY_NOT_CUDA)
    monkeypatch.setattr(extension, "cuda_architectures", ARCHITECTURES)
    monkeypatch.setattr(extension, "_found", extension.Extension(reason="no C++ compiler"))
    monkeypatch.setattr(extension, "has_kernel", lambda op, device: machine == [True])
    assert ops.kernel_layout(H100, 4) == CUDA_LAYOUT
    assert cuda.choice(90) == cuda.Choice(cuda.NVRTC, {cuda.LIBRARY: "no C++ compiler"})


def test_nvrtc_on_request(machine, monkeypatch):
    monkeypatch.setenv("QAIG_CUDA", "nvrtc")
    assert cuda.load(H100)
    assert cuda.choice(90) == cuda.Choice(cuda.NVRTC, {cuda.LIBRARY: "QAIG_CUDA=nvrtc"})
    assert machine == [True]


def test_then_nothing(machine, monkeypatch, caplog):
    monkeypatch.setattr(extension, "why_not_cuda", lambda: "no nvcc")
    monkeypatch.setattr(nvrtc, "why_not", lambda: "not installed: pip install it")
    for _ in range(2):
        assert not cuda.load(H100)
    assert cuda.choice(90).reasons == {cuda.LIBRARY: "no nvcc", cuda.NVRTC: "not installed: pip install it"}
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "no nvcc" in warnings[0]
    assert "pip install it" in warnings[0]
    assert machine == []


@pytest.mark.parametrize("variable", ["QAIG_CUDA=0", "QAIG_DISABLE_EXTENSION=1"])
def test_switched_off(machine, monkeypatch, variable):
    monkeypatch.setenv(*variable.split("="))
    assert not cuda.load(H100)
    assert all(variable.split("=")[0] in reason for reason in cuda.choice(90).reasons.values())
    assert machine == []


def test_an_architecture_that_nvrtc_does_not_know(machine, monkeypatch):
    monkeypatch.setattr(extension, "cuda_architectures", lambda: ("80",))
    monkeypatch.setattr(nvrtc, "supported_architectures", lambda: (75, 80))
    assert not cuda.load(H100)
    assert "which do not run on compute capability 90" in cuda.choice(90).reasons[cuda.NVRTC]


def test_binaries_and_gpus():
    assert cuda.covers(("80",), 86)
    assert not cuda.covers(("86",), 80)
    assert not cuda.covers(("80",), 90)
    assert cuda.covers(("80+PTX",), 120)
    assert not cuda.covers(("120+PTX",), 110)
    assert cuda.covers(("90a",), 90)
    assert not cuda.covers(("100f", "100a"), 103)
    assert not cuda.covers((), 90)
