"""`qaig_cuda_device` and `qaig_cuda_message`, compiled for the host against a made-up CUDA runtime."""

import ctypes
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from transformers_qaig.kernels import compiler

CSRC = Path(__file__).parents[3] / "csrc"
SOURCE = CSRC / "cuda" / "host" / "device.cu"
CUDA_ERROR = 1000
RUNTIME = r"""
#pragma once
#include <atomic>
#include <chrono>
#include <thread>

enum cudaError_t { cudaSuccess = 0 };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount, cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor
};
extern "C" {
static thread_local int current = 0, failing = -1, pending = 0;
static std::atomic<int> questions{0};
void set_current(int device) { current = device; }
void set_failing(int attribute) { failing = attribute; }
int pending_error() { return pending; }
int asked() { return questions; }
}
inline cudaError_t fail() { return static_cast<cudaError_t>(pending = 46); }
inline cudaError_t cudaGetLastError() { pending = 0; return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { *device = current; return failing == 3 ? fail() : cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == 46 ? "all devices are busy" : "?"; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    questions++;
    std::this_thread::sleep_for(std::chrono::microseconds(500));  // time for others to look
    *value = attribute == cudaDevAttrMultiProcessorCount ? 100 + device
             : attribute == cudaDevAttrComputeCapabilityMajor ? 7 + device % 3 : device % 2;
    return failing == attribute ? fail() : cudaSuccess;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    (folder / "cuda_runtime.h").write_text(RUNTIME)
    found = compiler.find_compiler()
    assert found is not None
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-D__CUDACC__", "-D__host__=", "-D__device__="]
    command = [*found.command, *flags, f"-I{folder}", f"-I{CSRC}", "-x", "c++", str(SOURCE)]
    subprocess.run([*command, "-o", str(folder / "device.so")], check=True)
    return folder / "device.so"


@pytest.fixture
def library(compiled: Path, tmp_path: Path) -> ctypes.CDLL:
    """Nothing is known in it yet."""
    loaded = ctypes.CDLL(shutil.copy(compiled, tmp_path))
    loaded.qaig_cuda_message.restype = ctypes.c_char_p
    return loaded


def ask(library: ctypes.CDLL) -> tuple[int, int, int]:
    processors, capability = ctypes.c_int(), ctypes.c_int()
    return library.qaig_cuda_device(ctypes.byref(processors), ctypes.byref(capability)), *(
        value.value for value in (processors, capability)
    )


def expected(device: int) -> tuple[int, int, int]:
    return 0, 100 + device, 10 * (7 + device % 3) + device % 2


def test_a_device_is_asked_once(library: ctypes.CDLL) -> None:
    for device in (0, 5, 0, 5, 63):
        library.set_current(device)
        assert ask(library) == expected(device)
    assert library.asked() == 3 * 3


def test_devices_beyond_those_remembered_are_asked_each_time(library: ctypes.CDLL) -> None:
    library.set_current(64)
    assert ask(library) == ask(library) == expected(64)
    assert library.asked() == 2 * 3


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_an_error_is_told_cleared_and_not_remembered(library: ctypes.CDLL, failing: int) -> None:
    library.set_failing(failing)
    status, *_ = ask(library)
    assert status == CUDA_ERROR + 46
    assert library.qaig_cuda_message(status) == b"all devices are busy"
    assert library.pending_error() == 0
    library.set_failing(-1)
    assert ask(library) == expected(0)


def test_messages(library: ctypes.CDLL) -> None:
    messages = [library.qaig_cuda_message(status) for status in (0, 1, 2)]
    assert messages[0] == b"no error"
    assert len(set(messages)) == 3
    assert library.qaig_cuda_message(-1) == b"unknown"


def test_threads_see_a_device_whole_or_not_at_all(library: ctypes.CDLL) -> None:
    def watch(number: int) -> Counter:
        seen: Counter = Counter()
        for turn in range(300):
            device = (number + turn) % 7
            library.set_current(device)  # of this thread
            seen[ask(library) == expected(device)] += 1
        return seen

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(watch, range(8)), Counter()) == {True: 2400}
