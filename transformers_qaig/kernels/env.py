"""Reports what this installation can run, and why not more: `transformers-qaig env`."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import torch

from ..utils.version import __version__
from . import cuda, extension

OPS = ("linear", "linear_many", "linear_grad_input", "embedding", "gptq_columns")
DEVICES = ("cpu", "cuda")
_KERNEL_BITS, _WIDENED_BITS = "bits 2, 3, 4, 8", "bits 5, 6, 7"
_NO_KERNEL = "the weight is dequantized a few rows at a time and multiplied by torch's own kernels"
_NO_GPU = "torch sees no CUDA device here"
_NO_CUDA_KERNEL = {"linear_grad_input": _NO_KERNEL, "embedding": "no kernel of its own: torch reads the rows asked for"}


@dataclass(frozen=True)
class Backend:
    """The implementation that runs one operator on one device.

    Attributes:
        op: as in `torch.ops.qaig`.
        device: "cpu" or "cuda".
        case: which calls, where not all run alike: a choice of widths or dtypes.
        name: "cpu (<isa>)", "cuda (library)", "cuda (NVRTC)" or "reference", the plain-torch fallback.
        why_not_faster: None if it is the fastest there is.
    """

    op: str
    device: str
    case: str
    name: str
    why_not_faster: str | None


@dataclass(frozen=True)
class Environment:
    """The findings of `collect`; `str()` of it is the report."""

    versions: dict[str, str]
    cpu_model: str
    cpu_features: tuple[str, ...]
    cpu_isa: str | None
    cpu_isas: tuple[str, ...]
    library: Path | None
    library_origin: str
    gpus: tuple[str, ...]
    cuda_library: str
    nvrtc: str
    backends: tuple[Backend, ...]

    def __str__(self) -> str:
        lines = [f"{name:<18} {found}" for name, found in self.versions.items()]
        lines.append(f"{'CPU':<18} {self.cpu_model}")
        if self.library is not None:
            lines.append(f"{'CPU features':<18} {' '.join(self.cpu_features) or 'none that the kernels use'}")
            lines.append(f"{'CPU ISA':<18} {self.cpu_isa} (of {', '.join(self.cpu_isas)})")
        lines.append(f"{'library':<18} {self.library or 'none'} ({self.library_origin})")
        lines += [f"{'GPU':<18} {gpu}" for gpu in self.gpus or ("none that torch sees",)]
        lines.append(f"{'CUDA in library':<18} {self.cuda_library}")
        lines.append(f"{'NVRTC':<18} {self.nvrtc}")
        lines.append(f"{'CUDA ran on':<18} {', '.join(cuda.EXECUTED_ON)}; for others compiled, and run on an emulator")
        lines.append(f"{'reference':<18} below: plain torch, in the place of a kernel of this package")
        for backend in self.backends:
            if backend.why_not_faster == _NO_GPU:
                continue
            lines.append(f"\n{backend.op} on {backend.device}, {backend.case}: {backend.name}")
            if backend.why_not_faster is not None:
                lines.append(f"    why not faster: {backend.why_not_faster}")
        if any(backend.why_not_faster == _NO_GPU for backend in self.backends):
            lines.append(f"\nevery operator on cuda: reference\n    why not faster: {_NO_GPU}")
        return "\n".join(lines)


def collect() -> Environment:
    """Loads the compiled kernels, compiling them if need be, and lists what runs on this machine.

    Raises:
        ValueError: `QAIG_CPU_ISA` names no instruction set of the kernels, or one that this processor lacks.
    """
    extension.load()
    return Environment(
        versions={
            "transformers-qaig": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        cpu_model=_cpu_model(),
        cpu_features=extension.cpu_features(),
        cpu_isa=extension.cpu_isa(),
        cpu_isas=extension.cpu_isas(),
        library=extension.library_path(),
        library_origin=extension.origin() or extension.why_not() or "",
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        cuda_library=_cuda_library(),
        nvrtc=_nvrtc(),
        backends=tuple(backend for op in OPS for device in DEVICES for backend in _backends(op, device)),
    )


def _backends(op: str, device: str) -> list[Backend]:
    if device == "cuda":
        capabilities = dict.fromkeys(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
        if not capabilities:
            return [Backend(op, device, "every call", "reference", _NO_GPU)]
        return [backend for major, minor in capabilities for backend in _cuda_backends(op, 10 * major + minor)]
    if not extension.has_kernel(op, "cpu"):
        return [Backend(op, device, "every call", "reference", extension.why_not() or _NO_KERNEL)]
    if op in ("embedding", "gptq_columns"):  # one piece of code for all instruction sets
        return [Backend(op, device, "every call", "cpu (portable)", None)]
    kernel = f"cpu ({extension.cpu_isa()})"
    return [
        Backend(op, device, _KERNEL_BITS, kernel, _why_not_faster_isa()),
        Backend(op, device, _WIDENED_BITS, kernel, "no kernel of their own: widened to 8 bits at each call"),
        *_float64(op, device),
    ]


def _cuda_backends(op: str, capability: int) -> list[Backend]:
    gpu = f"sm_{capability}"
    if op in _NO_CUDA_KERNEL:
        return [Backend(op, "cuda", f"{gpu}, every call", "reference", _NO_CUDA_KERNEL[op])]
    choice = cuda.choice(capability)
    why_not = "; ".join(f"{step}: {reason}" for step, reason in choice.reasons.items()) or None
    if choice.origin is None:
        return [Backend(op, "cuda", f"{gpu}, every call", "reference", why_not)]
    if op == "gptq_columns":
        return [Backend(op, "cuda", f"{gpu}, every call", f"cuda ({choice.origin})", why_not)]
    return [
        Backend(op, "cuda", f"{gpu}, {_KERNEL_BITS}", f"cuda ({choice.origin})", why_not),
        Backend(op, "cuda", f"{gpu}, {_WIDENED_BITS}", "reference", "no kernel of their own"),
        Backend(op, "cuda", f"{gpu}, input rotated but not rounded", "reference", "no kernel of their own"),
        Backend(op, "cuda", f"{gpu}, float32 or float64 input", "reference", "the kernels take 16-bit floats"),
    ]


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"


def _cuda_library() -> str:
    reason = extension.why_not_cuda()
    return f"none: {reason}" if reason else f"for {', '.join(f'sm_{a}' for a in extension.cuda_architectures())}"


def _nvrtc() -> str:
    from .cuda import nvrtc

    reason = nvrtc.why_not()
    return f"none: {reason}" if reason else "{}.{}".format(*nvrtc.version())


def _float64(op: str, device: str) -> list[Backend]:
    if op != "linear":
        return []  # refused
    return [Backend(op, device, "float64 input", "reference", "the kernels compute in float32 at most")]


def _why_not_faster_isa() -> str | None:
    isa, best = extension.cpu_isa(), extension.best_cpu_isa()
    if isa != best:
        for variable in ("QAIG_CPU_ISA", "QAIG_CPU_LEVEL"):
            if os.environ.get(variable) == isa:
                return f"{variable}={isa}"
        return f"the instruction set was set below the best, {best}"
    better = dict(pairwise(extension.CPU_ISAS)).get(isa or "")
    if better in extension.cpu_isas():  # as QAIG_EMULATE_AMX has it
        return f"{better} is emulated; QAIG_CPU_ISA={better} takes it"
    lacking = "this processor, or the compiler of the kernels, lacks part of what"
    return f"{lacking} {better} needs (csrc/cpu/isa.h)" if better else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    print(collect())
