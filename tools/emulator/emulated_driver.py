"""A driver that runs each launch on the emulator, and a device whose tensors are the CPU's."""

import contextlib
import ctypes
import threading
from types import SimpleNamespace

import torch

from transformers_qaig.kernels.cuda import interface
from transformers_qaig.kernels.cuda.driver import Device

PROCESSORS = 3


class EmulatedDriver:
    """The calls of `cuda.bindings.driver` that we make. A function is a kernel's name; a cubin is it, too."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.launches: list[tuple[str, tuple[int, ...], int]] = []
        self.loaded: list[str] = []
        self.semaphores: list[int] = []
        self.memory: list[torch.Tensor] = []
        self.pending: list[str] = []
        self.capture, self.mode, self.is_full = 0, "global", False
        self.thread = threading.local()

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def cuDeviceGet(self, index):
        return 0, index

    def cuDevicePrimaryCtxRetain(self, device):
        return 0, f"context of {device}"

    def cuCtxSetCurrent(self, context):
        self.thread.context = context
        return (0,)

    def cuModuleLoadData(self, cubin):
        if self.mode != "relaxed" or not hasattr(self.thread, "context"):
            return 900, None
        self.loaded.append(cubin.decode())
        return 0, cubin

    def cuModuleGetFunction(self, module, name):
        return (0, name.decode()) if module == name else (500, None)

    def cuMemAlloc(self, size):
        assert self.mode == "relaxed"
        if self.is_full:
            return 2, None
        self.memory.append(torch.full((size // 4,), -1, dtype=torch.int32))
        return 0, self.memory[-1].data_ptr()

    def cuMemsetD32Async(self, address, value, count, stream):
        ctypes.memset(address, value, 4 * count)
        self.pending.append(stream)
        return (0,)

    def cuThreadExchangeStreamCaptureMode(self, mode):
        self.mode, mode = mode, self.mode
        return 0, mode

    def cuStreamCreate(self, flags):
        return 0, f"stream {flags}"

    def cuStreamSynchronize(self, stream):
        self.pending.remove(stream)
        return (0,)

    def cuStreamDestroy(self, stream):
        return (0,)

    def cuStreamGetCaptureInfo(self, stream):
        if not hasattr(self.thread, "context"):
            return 201, None, None
        return 0, int(self.capture != 0), self.capture, None

    def cuGetErrorName(self, status):
        return 0, f"CUDA_ERROR_{int(status)}".encode()

    def cuGetErrorString(self, status):
        return 0, b"what it means"

    def cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
        self.launches.append((function, (gx, gy, gz, bx, by, bz), shared))
        address = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        dtype = interface.TYPES[torch.bfloat16 if "_bf16" in function else torch.float16]
        self.library.qaig_emulator_forbid_all()
        if "_gemv_" in function:
            argument = interface.Matmul.from_address(address)
            assert int(function.rpartition("_m")[2]) == interface.gemv_columns(argument.rows)
            items = sum(shape_of(layer).work_items for layer in argument.layers[: argument.layer_count])
            assert gx == interface.gemv_grid(items, PROCESSORS, interface.gemv_columns(argument.rows))
            self._allow_product(argument, *self._workspace("gemv", address))
            status = self.library.qaig_cuda_gemv(ctypes.c_void_p(address), dtype, None)
        elif "_gemm_" in function:
            kernel, _, width = function.removeprefix("qaig_").rpartition("_")[0].rpartition("_")
            argument = interface.Matmul.from_address(address)
            shapes = [shape_of(layer) for layer in argument.layers[: argument.layer_count]]
            assert {f"w{s.bits}" for s in shapes} == {width}
            assert gx == interface.gemm_grid(sum(interface.gemm_k_steps(s, argument.rows) for s in shapes), PROCESSORS)
            assert shared == getattr(interface, f"{kernel}_shared_bytes")(shapes[0].bits)
            size = 1 if kernel == "gemm_i8" else 2
            self._allow_product(argument, *self._workspace(kernel, address), size)
            launch = getattr(self.library, f"qaig_cuda_{kernel}")
            status = launch(ctypes.c_void_p(address), dtype, None)
        elif "_dequantize_" in function:
            argument = interface.Dequantize.from_address(address)
            assert (gx, gy) == interface.dequantize_grid(shape_of(argument), argument.start, argument.stop)
            self._allow_weight(argument)
            size = (argument.stop - argument.start) * argument.in_features
            self._allow(argument.out, size * (4 if argument.type == 0 else 2), True)
            status = self.library.qaig_cuda_dequantize(ctypes.c_void_p(address), None)
        elif function == "qaig_gptq_columns":
            argument = interface.GptqColumns.from_address(address)
            assert gx == interface.gptq_columns_grid(argument.size)
            columns = argument.count * argument.size
            for name, size in {"rows": 4 * columns, "errors": 4 * columns, "codes": columns}.items():
                self._allow(getattr(argument, name), size, True)
            for name in ("step", "scale", "zero"):
                self._allow(getattr(argument, name), 4 * argument.group_count * argument.size)
            far = (argument.count - 1) * (argument.factor_row + argument.factor_column) + 1
            self._allow(argument.factor, 4 * far)
            self._allow(argument.groups, 8 * argument.count)
            status = self.library.qaig_cuda_gptq_columns(ctypes.c_void_p(address), None)
        else:
            argument = interface.QuantizeActivations.from_address(address)
            assert gx == argument.rows
            self._allow(argument.x, argument.rows * argument.in_features * 2)
            self._allow(argument.out, argument.rows * argument.slots * 2, True)
            self._allow(argument.token_scale, argument.rows * 4, True)
            status = self.library.qaig_cuda_quantize_activations(ctypes.c_void_p(address), dtype, None)
        assert status == 0, self.library.qaig_emulator_error()
        return (0,)

    def _workspace(self, kernel, address):
        workspace_bytes, semaphores = ctypes.c_longlong(), ctypes.c_longlong()
        ask = getattr(self.library, f"qaig_cuda_{kernel}_workspace")
        assert ask(ctypes.c_void_p(address), ctypes.byref(workspace_bytes), ctypes.byref(semaphores)) == 0
        return workspace_bytes.value, semaphores.value

    def _allow_product(self, argument, workspace_bytes, semaphores, element_size=2):
        self._allow(argument.workspace, workspace_bytes, True)
        self._allow(argument.semaphores, 4 * semaphores, True)
        self.semaphores.append(argument.semaphores)
        for layer in argument.layers[: argument.layer_count]:
            self._allow_weight(layer)
            self._allow(layer.bias, layer.out_features * (4 if layer.bias_type == 0 else 2))
            self._allow(layer.x, ((argument.rows - 1) * layer.x_stride + layer.x_slots) * element_size)
            self._allow(layer.token_scale, argument.rows * 4)
            self._allow(layer.y, argument.rows * layer.out_features * 2, True)

    def _allow_weight(self, argument):
        s = shape_of(argument)
        rows = s.row_blocks * s.groups * interface.BLOCK_ROWS
        self._allow(argument.words, s.work_items * s.bits * 512)
        self._allow(argument.scale, rows * (4 if argument.scale_type == 0 else 2))
        self._allow(argument.zero, rows)

    def _allow(self, address, size, writable=False):
        if address:
            self.library.qaig_emulator_allow(ctypes.c_void_p(address), ctypes.c_longlong(size), int(writable))


class CpuDevice(Device):
    capturing = False

    def stream(self):
        return 7

    def is_capturing(self):
        return self.capturing

    def current(self):
        return contextlib.nullcontext()


def shape_of(argument) -> interface.Shape:
    return interface.Shape(argument.out_features, argument.in_features, argument.group_size, argument.bits)
