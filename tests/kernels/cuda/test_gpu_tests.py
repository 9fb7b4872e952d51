"""The tests of tests/gpu, which only a machine with a GPU runs, on a pretended one: the CPU, kernels on the emulator.

So that what they call, and with which arguments, is known to be right before a GPU sees them.
"""

import contextlib
import inspect
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.gpu import test_cuda_kernels, test_recorded_steps
from tools.emulator import emulated
from tools.emulator.compilation import COMPILER
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, CUDA_LAYOUT
from transformers_qaig.kernels import extension
from transformers_qaig.nn import ops

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore:Warning only once for all operators"),  # operators are replaced on purpose
]

# They move layers from device to device, or need two.
ELSEWHERE = {"test_weights_are_the_cpus_to_the_bit", "test_every_gpu", "test_a_weight_on_another_gpu_is_refused"}
TESTS = {
    name: test
    for module in (test_cuda_kernels, test_recorded_steps)
    for name, test in vars(module).items()
    if name.startswith("test_") and inspect.isfunction(test) and name not in ELSEWHERE
}
SMALL = {"SHAPES": ((64, 64), (70, 128)), "ROWS": (1, 11, 17), "WIDE": 128, "ROTATED": 256, "LONG": 130, "CALLS": 3}


class OnCpu(TorchFunctionMode):
    """Takes "cuda" for "cpu"."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args = tuple(_device(value) for value in args)
        return function(*args, **{name: _device(value) for name, value in (kwargs or {}).items()})


def _device(value: Any) -> Any:
    is_cuda = isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "cuda"
    return "cpu" if is_cuda else value


class Graph:
    """A `torch.cuda.CUDAGraph` of the operators' calls."""

    recording: "Graph | None" = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple, torch.Tensor]] = []

    def replay(self) -> None:
        for operator, arguments, result in self.calls:
            result.copy_(operator(*arguments))

    @contextlib.contextmanager
    def record(self):
        Graph.recording = self
        yield
        Graph.recording = None


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


def recorded(operator: Any) -> Any:
    def call(*arguments: Any) -> Any:
        result = operator(*arguments)
        if Graph.recording is not None:
            Graph.recording.calls.append((operator, arguments, result))
        return result

    return call


@pytest.fixture(scope="module")
def operators():
    """Those of `torch.ops.qaig` for CPU tensors are the CUDA ones, on an H100 of three multiprocessors."""
    extension.load()  # before its CPU kernels are replaced
    with emulated.registered_operators() as emulator:
        emulator.set_capability(90)
        replaced = torch.library.Library("qaig", "IMPL")
        for name in emulated.OPERATORS:
            replaced.impl(name, recorded(getattr(torch.ops.qaig_emulated, name)), "CPU", allow_override=True)
        replaced.impl("repack", ops.repack_cuda, "CPU", allow_override=True)
        yield
        replaced._destroy()
        emulator.set_capability(86)


@pytest.fixture
def pretended(operators, monkeypatch):
    monkeypatch.setattr(
        ops, "kernel_layout", lambda device, bits: CUDA_LAYOUT if bits in (2, 3, 4, 8) else CHECKPOINT_LAYOUT
    )
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "CUDAGraph": Graph,
        "graph": Graph.record,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, value in SMALL.items():
        monkeypatch.setattr(test_cuda_kernels, name, value)
    with OnCpu():
        yield


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("which", [0, -1])
def test_on_a_pretended_gpu(pretended, name, which):
    """With the first or the last of each parameter's values."""
    arguments = {}
    for mark in getattr(TESTS[name], "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            many = not isinstance(names, str)
            arguments |= dict(zip(names, values[which])) if many else {names: values[which]}
    TESTS[name](**arguments)
