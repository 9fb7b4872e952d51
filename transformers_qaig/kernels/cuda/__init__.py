"""Chooses what runs on a CUDA device: the compiled library, kernels that NVRTC makes, or plain torch.

`load` takes the first of these that works for the present GPU:

1. the library of `extension.py` (prebuilt, or compiled at first use), if it has kernels for this GPU;
2. NVRTC, through cuda-bindings (`pip install "transformers-qaig[cuda]"`): the same kernels, each compiled when it is
first needed, launched from Python;
3. nothing: the plain-torch reference runs, and one warning says why.

`QAIG_CUDA=nvrtc` asks for the second, `QAIG_CUDA=0` and `QAIG_DISABLE_EXTENSION=1` for the third. Nothing here imports
cuda-python before it is needed.
"""

import ctypes
import os
import threading
from dataclasses import dataclass

import torch

from ...utils.logging import get_logger
from .. import extension

_logger = get_logger(__name__)
_lock = threading.Lock()

LIBRARY, NVRTC = "library", "NVRTC"
EXECUTED_ON = ("sm_90 (H200)",)
"""GPUs on which the kernels have been run and checked. Everything else is compiled, and executed on an emulator."""


@dataclass(frozen=True)
class Choice:
    """The kernels that `load` found for one compute capability.

    Attributes:
        origin: `LIBRARY`, `NVRTC`, or None for plain torch.
        reasons: for each better one, why it was not taken.
    """

    origin: str | None
    reasons: dict[str, str]


_choices: dict[int, Choice] = {}
_registered: torch.library.Library | None = None


def load(device: torch.device) -> bool:
    """Loads the kernels for a device, once per process; compiling the library may take a minute.

    Args:
        device: a CUDA device.

    Returns:
        whether there are any. If not, one warning said why and how to change it.
    """
    capability = _capability(device)
    if capability not in _choices:
        with _lock:
            if capability not in _choices:
                _choices[capability] = _choose(capability)
    return _choices[capability].origin is not None


def choice(capability: int) -> Choice:
    """Returns what `load` would find for a GPU of this compute capability (90 for 9.0); the GPU need not be here."""
    return _choices.get(capability) or _look(capability)


def covers(architectures: tuple[str, ...], capability: int) -> bool:
    """Whether binaries for these architectures ("80", "90a", "120+PTX") run on a GPU of this compute capability."""
    for architecture in architectures:
        number = int(architecture.removesuffix("+PTX").rstrip("af"))
        exact = architecture[-1] in "af"
        if number == capability or (not exact and number // 10 == capability // 10 and number < capability):
            return True
        if architecture.endswith("+PTX") and number < capability:
            return True
    return False


def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _choose(capability: int) -> Choice:
    found = _look(capability)
    if found.origin == LIBRARY and (refusal := _library_refuses()):
        nvrtc = _why_not_nvrtc(capability)
        reasons = {LIBRARY: refusal} | ({NVRTC: nvrtc} if nvrtc else {})
        found = Choice(None if nvrtc else NVRTC, reasons)
    if found.origin == NVRTC:
        _register()
    if found.origin is None:
        _logger.warning(
            "No CUDA kernels, so quantized layers run in plain torch, which is slow: %s",
            "; ".join(f"{step}: {reason}" for step, reason in found.reasons.items()),
        )
    return found


def _look(capability: int) -> Choice:
    if (switch := _switched_off()) is not None:
        return Choice(None, {LIBRARY: switch, NVRTC: switch})
    reasons: dict[str, str] = {}
    library = _why_not_library(capability)
    if library is None:
        return Choice(LIBRARY, reasons)
    reasons[LIBRARY] = library
    nvrtc = _why_not_nvrtc(capability)
    if nvrtc is None:
        return Choice(NVRTC, reasons)
    return Choice(None, reasons | {NVRTC: nvrtc})


def _why_not_library(capability: int) -> str | None:
    if os.environ.get("QAIG_CUDA") == "nvrtc":
        return "QAIG_CUDA=nvrtc"
    if (reason := extension.why_not_cuda()) is not None:
        return reason
    architectures = extension.cuda_architectures()
    if not covers(architectures, capability):
        return f"compiled for {', '.join(architectures)}, not for this GPU's {capability}"
    return None


def _library_refuses() -> str | None:
    """Returns why the CUDA runtime inside the library does not work here, such as a driver that is too old."""
    library = extension.library()
    if library is None:
        return extension.why_not()
    library.qaig_cuda_error.restype = ctypes.c_char_p
    error = library.qaig_cuda_error()
    return error.decode() if error else None


def _why_not_nvrtc(capability: int) -> str | None:
    from . import nvrtc

    if (reason := nvrtc.why_not()) is not None:
        return reason
    try:
        nvrtc.choose_architecture(capability, nvrtc.supported_architectures())
    except nvrtc.NvrtcError as error:
        return str(error)
    return None


def _switched_off() -> str | None:
    if os.environ.get("QAIG_CUDA") == "0":
        return "QAIG_CUDA=0"
    if os.environ.get("QAIG_DISABLE_EXTENSION", "0") not in ("", "0"):
        return "QAIG_DISABLE_EXTENSION is set"
    return None


def _register() -> None:
    """Registers NVRTC's kernels as those of torch.ops.qaig for CUDA tensors."""
    global _registered
    from cuda.bindings import driver as api

    from . import nvrtc
    from .driver import Driver
    from .operators import Operators

    operators = Operators(Driver(api, nvrtc.cubin))
    _registered = torch.library.Library("qaig", "IMPL")
    for name in ("linear", "linear_many", "dequantize", "gptq_columns"):
        _registered.impl(name, getattr(operators, name), "CUDA", allow_override=True)
