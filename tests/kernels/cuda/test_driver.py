"""What the driver keeps between launches: kernels, semaphores, graphs that are being captured. On the emulator."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.kernels.cuda.products import arguments, close
from tools.emulator.compilation import COMPILER
from tools.emulator.emulated_driver import PROCESSORS, CpuDevice
from tools.emulator.weights import random_weight
from transformers_qaig.formats.packing import CUDA_LAYOUT
from transformers_qaig.kernels.cuda import interface
from transformers_qaig.kernels.cuda.driver import DriverError

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def test_a_kernel_is_loaded_once_for_each_device(machine):
    weight = random_weight(4, 64, 64)
    x = torch.randn(1, 64).half()
    for _ in range(2):
        machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT)
    assert machine.api.loaded == ["qaig_gemv_w4_f16_m8"]
    out = torch.empty_like(x)
    argument = interface.QuantizeActivations(x.data_ptr(), out.data_ptr(), None, 0, 0, 1, 64, 64, 64)
    for index in (0, 1, 1):
        machine.driver.launch(
            "qaig_quantize_activations_f16", argument, (1, 1), 256, 0, CpuDevice(index, 90, PROCESSORS)
        )
    assert machine.api.loaded.count("qaig_quantize_activations_f16") == 2


def test_kernels_are_loaded_while_others_capture(machine, monkeypatch):
    """In the relaxed mode, which ends with the loading, even if that fails."""
    weight = random_weight(4, 64, 64)
    x = torch.randn(1, 64).half()
    close(machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT), x, weight)
    assert machine.api.mode == "global"
    monkeypatch.setattr(machine.api, "cuModuleLoadData", lambda cubin: (200, None), raising=False)
    with pytest.raises(DriverError, match="loading qaig_gemv_w4_f16_m16"):
        machine.operators.linear(x.expand(9, -1), *arguments(weight), 16, CUDA_LAYOUT)
    assert machine.api.mode == "global"


def test_capture(machine, monkeypatch):
    """A graph gets semaphores of its own; a kernel that is not loaded yet says what to do."""
    weight = random_weight(4, 64, 64)
    x = torch.randn(1, 64).half()

    def call():
        return machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT)

    monkeypatch.setattr(CpuDevice, "capturing", True)
    machine.api.capture = 11
    with pytest.raises(RuntimeError, match="run the same call once before capturing"):
        call()
    monkeypatch.setattr(CpuDevice, "capturing", False)
    machine.api.capture = 0
    call()
    monkeypatch.setattr(CpuDevice, "capturing", True)
    for machine.api.capture in (11, 11, 12):
        close(call(), x, weight)
    eager, first, again, second = machine.api.semaphores
    assert first == again
    assert len({eager, first, second}) == 3
    assert not machine.api.memory[0].any()


def test_counters_are_set_aside_while_others_capture(machine):
    """In the relaxed mode, on a stream that blocks none; where there is no memory a launch brings its own."""
    weight = random_weight(4, 64, 64)
    x = torch.randn(1, 64).half()
    machine.api.is_full = True
    close(machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT), x, weight)
    assert machine.api.memory == []
    assert machine.api.mode == "global"
    machine.api.is_full = False
    close(machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT), x, weight)
    assert machine.api.semaphores[-1] == machine.api.memory[0].data_ptr()
    assert machine.api.mode == "global"
    assert machine.api.pending == []


def test_counters_in_a_thread_of_its_own(machine):
    """A new thread has no context, and without one there is no default stream to ask about."""
    device = CpuDevice(0, 80, PROCESSORS)
    first = machine.driver.semaphores(device, 1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(machine.driver.semaphores, device, 1).result() == first


def test_a_stream_that_asks_for_more_and_more(machine):
    """Leaves enough semaphores for others."""
    device = CpuDevice(0, 80, PROCESSORS)
    for count in range(1024, 100 * 1024, 1024):
        assert machine.driver.semaphores(device, count)
    machine.api.capture = 1
    assert machine.driver.semaphores(device, 1 << 19)
    machine.api.capture = 2
    assert machine.driver.semaphores(device, 1 << 18)
    assert machine.driver.semaphores(device, 1 << 18 | 1) is None


def test_more_captures_than_counters(machine):
    """Then a launch brings its own."""
    weight = random_weight(4, 64, 64)
    x = torch.randn(1, 64).half()
    for machine.api.capture in (0, *range(1, 1030)):
        device = CpuDevice(0, 80, PROCESSORS)
        if machine.api.capture in (0, 1029):
            close(machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT), x, weight)
        else:
            machine.driver.semaphores(device, 1)
    assert machine.driver.semaphores(device, 1) is None
    memory = machine.api.memory[0]
    inside = [memory.data_ptr() <= address < memory.data_ptr() + memory.nbytes for address in machine.api.semaphores]
    assert inside == [True, False]


def test_the_driver_says_what_failed(machine, monkeypatch):
    weight = random_weight(4, 64, 64)
    monkeypatch.setattr(machine.api, "cuLaunchKernel", lambda *_: (700,), raising=False)
    with pytest.raises(DriverError, match="launching qaig_gemv_w4_f16_m8: CUDA_ERROR_700 what it means"):
        machine.operators.linear(torch.randn(1, 64).half(), *arguments(weight), 16, CUDA_LAYOUT)
