"""Launches kernels from cubins through CUDA's driver (cuda-bindings), on torch's streams.

A launch allocates nothing and waits for nothing, so it can be captured in a CUDA graph. Loading a kernel, once for each
device, cannot: run every kernel of a capture before it, which is what torch's own warm-up does.
"""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

_SEMAPHORES = 1 << 20
"""Semaphores of each device, 4 bytes each, for all its streams and graphs."""
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


@dataclass(frozen=True)
class Device:
    """A GPU: its index, compute capability and number of multiprocessors."""

    index: int
    capability: int
    processors: int

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """Returns the `Device` of a CUDA `torch.device`."""
        index = torch.cuda.current_device() if device.index is None else device.index
        properties = torch.cuda.get_device_properties(index)
        return cls(index, properties.major * 10 + properties.minor, properties.multi_processor_count)

    def stream(self) -> int:
        """Returns the handle of torch's current stream on the device."""
        return torch.cuda.current_stream(self.index).cuda_stream

    def is_capturing(self) -> bool:
        """Whether that stream is being captured in a CUDA graph."""
        return torch.cuda.is_current_stream_capturing()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes it the current device, within the context."""
        with torch.cuda.device(self.index):
            yield


class DriverError(RuntimeError):
    """An error of the driver, by its name."""


class Driver:
    """Loads kernels and launches them, on each device.

    Args:
        api: `cuda.bindings.driver`.
        cubin: returns a kernel's binary, by name and compute capability.
    """

    def __init__(self, api: Any, cubin: Callable[[str, int], bytes]) -> None:
        self._api, self._cubin = api, cubin
        self._lock = threading.Lock()
        self._functions: dict[tuple[int, str], Any] = {}
        self._modules: list[Any] = []
        self._contexts: dict[int, Any] = {}
        self._threads = threading.local()
        self._semaphores: dict[int, int] = {}  # by device: the address of all
        self._taken: dict[int, int] = {}  # and how many of them are in use
        self._parts: dict[tuple[int, int, int], tuple[int, int]] = {}  # by device, stream, capture: address and size

    def launch(
        self, kernel: str, argument: ctypes.Structure, grid: tuple[int, int], threads: int, shared: int, device: Device
    ) -> None:
        """Launches `kernel(argument)` on torch's current stream of `device`.

        Args:
            kernel: its name in `csrc/cuda/arguments.h`.
            argument: the struct that the kernel reads.
            grid: blocks, along x and y.
            threads: per block.
            shared: bytes of dynamic shared memory.
            device: to launch on.

        Raises:
            DriverError: the driver refuses.
            RuntimeError: the kernel is used for the first time while a CUDA graph is captured.
        """
        function = self._functions.get((device.index, kernel)) or self._load(kernel, device)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))  # the driver copies the argument
        with device.current():
            self._enter_context(device)
            result = self._api.cuLaunchKernel(
                function, *grid, 1, threads, 1, 1, shared, device.stream(), ctypes.addressof(pointers), 0
            )
        self._check(result, f"launching {kernel}")

    def semaphores(self, device: Device, count: int) -> int | None:
        """Returns the address of `count` zeros that each launch leaves as zeros, or None if there are no more.

        Launches that may overlap in time share none. Each stream has its own. So has each part of a graph, since a
        graph may be replayed beside other work of the stream that it was captured on. The memory is set aside at the
        first call, and is not torch's: what torch allocates for good while a graph is recorded counts as a leak there
        (torch._inductor.cudagraph_trees.check_memory_pool).
        """
        stream = device.stream()
        with device.current():
            self._enter_context(device)  # the default stream is that of the context
            status, number, *_ = self._check(self._api.cuStreamGetCaptureInfo(stream), "asking for a capture")
        key = (device.index, stream, int(number) if int(status) == 1 else 0)
        with self._lock:
            if (
                device.index not in self._semaphores and key[2] == 0
            ):  # memory cannot be allocated while a graph is captured
                self._allocate_semaphores(device)
            address, size = self._parts.get(key, (0, 0))
            if size < count:
                taken = self._taken.get(device.index, _SEMAPHORES)
                if taken + count > _SEMAPHORES:
                    return None
                # Powers of two, so that a growing stream leaves behind no more semaphores than it has.
                size = min(max(1024, 1 << (count - 1).bit_length()), _SEMAPHORES - taken)
                self._taken[device.index] = taken + size
                address = self._semaphores[device.index] + 4 * taken
                self._parts[key] = (address, size)
        return address

    def _load(self, kernel: str, device: Device) -> Any:
        with self._lock:
            function = self._functions.get((device.index, kernel))
            if function is None:
                with device.current():
                    capturing = device.is_capturing()
                if capturing:
                    raise RuntimeError(
                        f"{kernel} is used for the first time while a CUDA graph is captured, where it cannot be "
                        "loaded: run the same call once before capturing"
                    )
                binary = self._cubin(kernel, device.capability)
                with device.current():
                    self._enter_context(device)
                    with self._while_others_capture(f"loading {kernel}"):
                        (module,) = self._check(self._api.cuModuleLoadData(binary), f"loading {kernel}")
                        self._modules.append(module)
                        (function,) = self._check(
                            self._api.cuModuleGetFunction(module, kernel.encode()), f"finding {kernel} in its module"
                        )
                self._functions[device.index, kernel] = function
        return function

    def _allocate_semaphores(self, device: Device) -> None:
        """Allocates zeros, unless the device has no memory left."""
        doing = "setting semaphores aside"
        with device.current():
            self._enter_context(device)
            with self._while_others_capture(doing):
                result = self._api.cuMemAlloc(4 * _SEMAPHORES)
                if int(result[0]) == _OUT_OF_MEMORY:
                    return
                (address,) = self._check(result, doing)
                self._zero(address)
        self._semaphores[device.index], self._taken[device.index] = int(address), 0

    @contextlib.contextmanager
    def _while_others_capture(self, doing: str) -> Iterator[None]:
        """Lets this thread do what another thread's capture forbids: torch's mode concerns all threads."""
        exchange = self._api.cuThreadExchangeStreamCaptureMode
        (mode,) = self._check(exchange(self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED), doing)
        try:
            yield
        finally:
            self._check(exchange(mode), doing)

    def _zero(self, address: Any) -> None:
        """Zeroes memory on a stream of its own: the default stream is off limits while another is captured."""
        api, doing = self._api, "zeroing semaphores"
        flag = api.CUstream_flags.CU_STREAM_NON_BLOCKING
        (stream,) = self._check(api.cuStreamCreate(int(flag)), doing)
        try:
            self._check(api.cuMemsetD32Async(address, 0, _SEMAPHORES, stream), doing)
            self._check(api.cuStreamSynchronize(stream), doing)
        finally:
            self._check(api.cuStreamDestroy(stream), doing)

    def _enter_context(self, device: Device) -> None:
        """Enters the device's context, which a new thread (a text streamer's, autograd's) does not have yet."""
        known = self._threads.__dict__.setdefault("devices", set())
        if device.index not in known:
            if device.index not in self._contexts:
                (handle,) = self._check(self._api.cuDeviceGet(device.index), "finding the device")
                (context,) = self._check(self._api.cuDevicePrimaryCtxRetain(handle), "entering the device's context")
                self._contexts[device.index] = context
            self._check(self._api.cuCtxSetCurrent(self._contexts[device.index]), "entering the device's context")
            known.add(device.index)

    def _check(self, result: tuple[Any, ...], doing: str) -> list[Any]:
        """Returns the values of a call, without its status."""
        status, *values = result
        if int(status) != 0:
            _, name = self._api.cuGetErrorName(status)
            _, text = self._api.cuGetErrorString(status)
            words = " ".join(t.decode() for t in (name, text) if t) or str(status)
            raise DriverError(f"CUDA failed {doing}: {words}")
        return values
