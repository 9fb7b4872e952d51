"""The CUDA kernels, compiled by g++ with the emulator, called through their C interface (csrc/cuda/host/api.h)."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tools.emulator.compilation import CSRC, EMULATOR, compiled, cuda_files
from tools.emulator.weights import Weight
from transformers_qaig.kernels.compiler import TORCH_TARGET
from transformers_qaig.kernels.cuda import interface
from transformers_qaig.kernels.cuda.interface import TYPES, Shape

OPERATORS = ("linear", "linear_many", "dequantize", "gptq_columns", "experts_linear")


class Emulator:
    """A compiled library. Kernels reach the tensors a call names, and nothing else."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self.library = ctypes.CDLL(str(library))
        self.library.qaig_emulator_error.restype = ctypes.c_char_p

    def seed(self, seed: int) -> None:
        """Of the order in which threads and blocks run."""
        self.library.qaig_emulator_seed(ctypes.c_ulonglong(seed))

    def set_processors(self, count: int) -> None:
        ctypes.c_int.in_dll(self.library, "qaig_emulator_processors").value = count

    def set_capability(self, capability: int) -> None:
        ctypes.c_int.in_dll(self.library, "qaig_emulator_capability").value = capability

    def matmul(
        self,
        x: Tensor,
        weights: list[Weight],
        activation_bits: int = 16,
        launches: int = 1,
        kernel: str = "gemv",
        rotation: tuple[int, int] = (0, 0),
    ) -> list[Tensor]:
        """x `[M, K]` by each weight, with one of the kernels "gemv", "gemm_f16" and "gemm_i8".

        gemv takes M up to 16. A gemm takes weights of one width. gemm_i8 takes 8 activation bits.

        Raises:
            RuntimeError: what the emulator found wrong.
        """
        rows = x.shape[0]
        matmul = interface.Matmul(rows=rows, layer_count=len(weights))
        results, keep, read, written = [], [], [], []
        for layer, w in zip(matmul.layers, weights):
            inputs, token_scale = self._inputs(x, w, activation_bits, kernel == "gemm_i8", rotation)
            y = torch.full((rows, w.out_features), torch.nan, dtype=x.dtype)
            results.append(y)
            keep += [inputs, token_scale]
            read += [inputs, token_scale, w.words, w.scale, w.zero, w.bias]
            written.append(y)
            layer.words, layer.scale, layer.y, layer.x = (t.data_ptr() for t in (w.words, w.scale, y, inputs))
            layer.zero = None if w.zero is None else w.zero.data_ptr()
            layer.token_scale = None if token_scale is None else token_scale.data_ptr()
            layer.x_stride, layer.x_slots = inputs.stride(0) * (2 if kernel == "gemm_i8" else 1), inputs.shape[1]
            layer.out_features, layer.in_features, layer.group_size = w.out_features, w.in_features, w.shape.group_size
            layer.bits, layer.scale_type = w.bits, TYPES[w.scale.dtype]
            if w.bias is not None:
                layer.bias, layer.bias_type = w.bias.data_ptr(), TYPES[w.bias.dtype]
        workspace_bytes, semaphore_count = ctypes.c_longlong(), ctypes.c_longlong()
        self._check(
            getattr(self.library, f"qaig_cuda_{kernel}_workspace")(
                ctypes.byref(matmul), ctypes.byref(workspace_bytes), ctypes.byref(semaphore_count)
            )
        )
        workspace = torch.full((workspace_bytes.value // 4,), torch.nan)
        semaphores = torch.zeros(semaphore_count.value, dtype=torch.int32)
        matmul.workspace, matmul.semaphores = workspace.data_ptr(), semaphores.data_ptr()
        for _ in range(launches):
            self._allow(read, [*written, workspace, semaphores])
            self._check(getattr(self.library, f"qaig_cuda_{kernel}")(ctypes.byref(matmul), TYPES[x.dtype], None))
            assert not semaphores.any(), "the semaphores are not zero after the launch"
        return results

    def experts(
        self,
        x: Tensor,
        offsets: Tensor,
        weights: list[Weight],
        activation_bits: int = 16,
        readable: list[int] | None = None,
    ) -> Tensor:
        """x `[R, K]` by the weight of each row's expert. `readable`: experts that may be read; None for all.

        Raises as `matmul` does.
        """
        first = weights[0]
        inputs, token_scale = self._inputs(x, first, activation_bits, False, (0, 0))
        y = torch.full((len(x), first.out_features), torch.nan, dtype=x.dtype)
        parts = [[w.words.flatten() for w in weights], [w.scale for w in weights], [w.zero for w in weights]]
        words, scale = torch.cat(parts[0]), torch.stack(parts[1])
        zero = None if first.zero is None else torch.stack(parts[2])
        of_words = words.split([w.words.numel() for w in weights])
        read = [inputs, token_scale, offsets]
        for expert in range(len(weights)) if readable is None else readable:
            read += [of_words[expert], scale[expert], None if zero is None else zero[expert]]
        arguments = interface.Experts(
            words.data_ptr(), scale.data_ptr(), None if zero is None else zero.data_ptr(), offsets.data_ptr(),
            inputs.data_ptr(), None if token_scale is None else token_scale.data_ptr(), y.data_ptr(), inputs.stride(0),
            inputs.shape[1], len(x), len(weights), first.out_features, first.in_features, first.shape.group_size,
            TYPES[first.scale.dtype],
        )  # fmt: skip
        for expert, w in enumerate(weights):
            arguments.bits[expert] = w.bits
        self._allow(read, [y])
        self._check(self.library.qaig_cuda_experts(ctypes.byref(arguments), TYPES[x.dtype], None))
        return y

    def dequantize(self, w: Weight, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) in `dtype`. Raises as `matmul` does."""
        stop = w.out_features if stop is None else stop
        out = torch.full((stop - start, w.in_features), torch.nan, dtype=dtype)
        arguments = interface.Dequantize(
            w.words.data_ptr(), w.scale.data_ptr(), None if w.zero is None else w.zero.data_ptr(), out.data_ptr(),
            start, stop, w.out_features, w.in_features, w.shape.group_size, w.bits, TYPES[w.scale.dtype], TYPES[dtype],
        )  # fmt: skip
        self._allow([w.words, w.scale, w.zero], [out])
        self._check(self.library.qaig_cuda_dequantize(ctypes.byref(arguments), None))
        return out

    def quantize_activations(
        self,
        x: Tensor,
        group_size: int,
        activation_bits: int,
        rotation: tuple[int, int] = (0, 0),
        as_bytes: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x in slot order and, with 8 bits, as integers with each row's scale. Raises as `matmul` does."""
        block, seed = rotation
        rows, in_features = x.shape
        shape = Shape.of(1, in_features, group_size, 2)
        out = torch.full((rows, shape.slots), torch.nan, dtype=x.dtype)
        token_scale = torch.full((rows,), torch.nan) if activation_bits == 8 else None
        arguments = interface.QuantizeActivations(
            x.data_ptr(), out.data_ptr(), None if token_scale is None else token_scale.data_ptr(),
            seed, block, rows, in_features, shape.group_size, shape.slots, as_bytes,
        )  # fmt: skip
        self._allow([x], [out, token_scale])
        self._check(self.library.qaig_cuda_quantize_activations(ctypes.byref(arguments), TYPES[x.dtype], None))
        return out, token_scale

    def gptq_columns(
        self, rows: Tensor, factor: Tensor, groups: Tensor, step: Tensor, scale: Tensor, zero: Tensor, max_code: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows as they were when they were rounded, errors and codes. Raises as `matmul` does."""
        rows = rows.clone()
        errors, codes = torch.full_like(rows, torch.nan), torch.full_like(rows, 255, dtype=torch.uint8)
        pointers = (t.data_ptr() for t in (rows, errors, codes, factor, groups, step, scale, zero))
        arguments = interface.GptqColumns(*pointers, rows.shape[1], *factor.stride(), len(rows), len(step), max_code)
        reached = factor.as_strided(((len(rows) - 1) * sum(factor.stride()) + 1,), (1,))
        self._allow([reached, groups, step, scale, zero], [rows, errors, codes])
        self._check(self.library.qaig_cuda_gptq_columns(ctypes.byref(arguments), None))
        return rows, errors, codes

    def _inputs(
        self, x: Tensor, w: Weight, activation_bits: int, as_bytes: bool, rotation: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        if w.shape.in_channel_order and w.in_features % 8 == 0 and activation_bits == 16:
            return x, None
        return self.quantize_activations(x, w.group_size, activation_bits, rotation, as_bytes)

    def _allow(self, read: list[Tensor | None], written: list[Tensor | None]) -> None:
        self.library.qaig_emulator_forbid_all()
        for tensors, writable in ((read, 0), (written, 1)):
            for tensor in tensors:
                if tensor is not None:
                    size = ctypes.c_longlong(tensor.numel() * tensor.element_size())
                    self.library.qaig_emulator_allow(ctypes.c_void_p(tensor.data_ptr()), size, writable)

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"status {status}: {self.library.qaig_emulator_error().decode()}")

    def capture(self, graph: int) -> None:
        """From now on launches are captured in a graph of this number; 0: in none."""
        ctypes.c_ulonglong.in_dll(self.library, "qaig_emulator_capture").value = graph

    def semaphores(self, count: int, stream: int = 0) -> int | None:
        """Address of `count` semaphores for launches on `stream`, if there are any left."""
        address = ctypes.c_void_p()
        status = self.library.qaig_cuda_semaphores(
            ctypes.c_void_p(stream), ctypes.c_longlong(count), ctypes.byref(address)
        )
        self._check(status)
        return address.value

    def allow_all(self) -> None:
        """Lets kernels reach all memory: for calls that allocate by themselves."""
        self.library.qaig_emulator_allow(None, ctypes.c_longlong(2**63 - 1), 1)


def build(sources: Path = CSRC) -> Emulator:
    """The kernels of the folder `cuda` of `sources` on the emulator, compiled unless an earlier run did.

    Raises:
        RuntimeError: if something does not compile.
    """
    return Emulator(compiled([*cuda_files(sources), *sorted(EMULATOR.glob("*.cpp"))], sources, [], []))


def build_operators() -> Emulator:
    """The operators of csrc/ops/cuda for CPU tensors, as `torch.ops.qaig_emulated`, with the kernels. Raises as
    `build` does.
    """
    torch_folder = Path(torch.__file__).parent
    flags = ["-DQAIG_EMULATED", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-isystem{torch_folder / 'include'}"]
    files = [CSRC / "ops" / "cuda" / "operators.cpp", *cuda_files(CSRC), *sorted(EMULATOR.glob("*.cpp"))]
    return Emulator(compiled(files, CSRC, flags, [f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]))


@contextlib.contextmanager
def registered_operators() -> Iterator[Emulator]:
    """Those of `build_operators` as `torch.ops.qaig_emulated`, with the schemas of `torch.ops.qaig`."""
    schemas = torch.library.Library("qaig_emulated", "DEF")
    for name in OPERATORS:
        schemas.define(str(getattr(torch.ops.qaig, name).default._schema).removeprefix("qaig::"))
    emulator = build_operators()
    emulator.allow_all()
    torch.ops.load_library(str(emulator.path))
    yield emulator
    schemas._destroy()
