"""What this installation can run, and why not more: `python -m transformers_qaig.env`."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from . import __version__, extension

OPS = ("linear", "linear_many", "linear_grad_input")
DEVICES = ("cpu", "cuda")
_KERNEL_BITS, _EXPANDED_BITS = "bits 2, 3, 4, 8", "bits 5, 6, 7"


@dataclass(frozen=True)
class Backend:
    """Who answers calls of one operator on one device.

    Attributes:
        op (`str`): as in `torch.ops.qaig`.
        device (`str`): "cpu" or "cuda".
        case (`str`): which calls, where not all are answered alike: a choice of widths or dtypes.
        name (`str`): "cpu (<level>)" or "reference", the plain-torch fallback.
        why_not_faster (`str`, *optional*): None if it is the fastest there is.
    """

    op: str
    device: str
    case: str
    name: str
    why_not_faster: str | None


@dataclass(frozen=True)
class Environment:
    """What `collect` finds; `str()` of it is the report."""

    versions: dict[str, str]
    cpu_model: str
    cpu_features: tuple[str, ...]
    cpu_level: str | None
    best_cpu_level: str | None
    library: Path | None
    library_origin: str
    backends: tuple[Backend, ...]

    def __str__(self) -> str:
        lines = [f"{name:<18} {found}" for name, found in self.versions.items()]
        lines.append(f"{'CPU':<18} {self.cpu_model}")
        if self.library is not None:
            lines.append(f"{'CPU features':<18} {' '.join(self.cpu_features) or 'none that the kernels use'}")
            lines.append(f"{'CPU level':<18} {self.cpu_level} (best: {self.best_cpu_level})")
        lines.append(f"{'library':<18} {self.library or 'none'} ({self.library_origin})")
        for backend in self.backends:
            lines.append(f"\n{backend.op} on {backend.device}, {backend.case}: {backend.name}")
            if backend.why_not_faster is not None:
                lines.append(f"    why not faster: {backend.why_not_faster}")
        return "\n".join(lines)


def collect() -> Environment:
    """Loads the compiled kernels, compiling them if need be, and looks.

    Raises:
        ValueError: if `QAIG_CPU_LEVEL` is not a level, or not one this processor can run.
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
        cpu_level=extension.cpu_level(),
        best_cpu_level=extension.best_cpu_level(),
        library=extension.library_path(),
        library_origin=extension.origin() or extension.why_not() or "",
        backends=tuple(backend for op in OPS for device in DEVICES for backend in _backends(op, device)),
    )


def _backends(op: str, device: str) -> list[Backend]:
    if device == "cuda":
        reason = "there are no CUDA kernels yet"
        if not torch.cuda.is_available():
            reason += ", and torch sees no CUDA device here"
        return [Backend(op, device, "every call", "reference", reason)]
    if not _has_cpu_kernel(op):
        reason = (
            extension.why_not() or "the weight is expanded a few rows at a time and multiplied by torch's own kernels"
        )
        return [Backend(op, device, "every call", "reference", reason)]
    kernel = f"cpu ({extension.cpu_level()})"
    return [
        Backend(op, device, _KERNEL_BITS, kernel, _why_not_faster_level()),
        Backend(op, device, _EXPANDED_BITS, kernel, "no kernel of their own: expanded to 8 bits at each call"),
        *_float64(op, device),
    ]


def _float64(op: str, device: str) -> list[Backend]:
    if op != "linear":
        return []  # refused
    return [Backend(op, device, "float64 input", "reference", "the kernels compute in float32 at most")]


def _has_cpu_kernel(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"qaig::{op}", "CPU")


def _why_not_faster_level() -> str | None:
    level, best = extension.cpu_level(), extension.best_cpu_level()
    if level != best:
        wanted = os.environ.get("QAIG_CPU_LEVEL")
        return f"QAIG_CPU_LEVEL={wanted}" if wanted == level else f"the level was set below the best, {best}"
    higher = {"portable": "avx2", "avx2": "avx512"}.get(level or "")
    return f"this processor lacks part of what level {higher} needs (csrc/cpu/level.h)" if higher else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    print(collect())
