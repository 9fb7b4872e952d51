"""PyTorch's global state: saves what a script has set, and sets what quantization computes under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_ATTENTION = [SDPBackend(kind) for kind in (1, 2, 0, 3, 4)]
"""Every kernel of attention, in the order in which a fresh process prefers them."""


class Modes(NamedTuple):
    """PyTorch's modes that belong to a thread, or that two computations on one thread may want to differ in."""

    grad: bool
    inference: bool
    dtype: torch.dtype
    autocast_cache: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls) -> Modes:
        """Returns the present modes."""
        accelerator = torch.accelerator.current_accelerator()
        devices = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.is_autocast_cache_enabled(),
            tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices),
        )

    def set(self) -> None:
        """Sets all modes except inference mode, which has no setter: `torch.inference_mode(...)` must be entered."""
        torch.set_grad_enabled(self.grad)
        torch.set_default_dtype(self.dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.clear_autocast_cache()  # it may hold casts of weights that are about to change

    def as_in_a_fresh_process(self) -> Modes:
        """Returns the modes of a fresh process: gradients on, float32 by default, no autocast."""
        autocast = tuple((device, False, dtype) for device, _, dtype in self.autocast)
        return self._replace(grad=True, dtype=torch.float32, autocast=autocast)


@contextmanager
def default_torch_state() -> Iterator[None]:
    """Makes PyTorch compute as in a fresh process, within the context; then the script's settings are back.

    Covered: default device (the CPU) and dtype (float32), autocast (off), gradients (on), the precision of float32
    products (full), the libraries and attention kernels that torch may use (all), denormal numbers (kept), and
    deterministic algorithms (not asked for). Under the last, some operations of a model raise, and others give other
    bits.

    The number of threads stays what it is. It changes neither our own sums nor, with [`FewRows`], the products of
    linear layers. In float32, sums inside other operators of the model's forward pass may differ in their last bits.
    Then codes may differ, too.
    """
    theirs = Modes.now()
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # the context costs every call of torch a little
            stack.enter_context(torch.device("cpu"))
        stack.callback(theirs.set)
        stack.enter_context(_no_deterministic_algorithms())
        stack.enter_context(_full_float32_products())
        stack.enter_context(_all_libraries())
        stack.enter_context(_denormal_numbers())
        theirs.as_in_a_fresh_process().set()
        yield


@contextmanager
def _no_deterministic_algorithms() -> Iterator[None]:
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


@contextmanager
def _full_float32_products() -> Iterator[None]:
    """Sets full precision for all backends and for each: CUDA's products raise where the two settings do not agree."""
    mkldnn: Any = torch.backends.mkldnn  # matmul and conv are made when it is imported: mypy does not see them
    cudnn: Any = torch.backends.cudnn
    backends = (mkldnn.matmul, mkldnn.conv, torch.backends.cuda.matmul, cudnn.conv)
    of_each = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    of_all = torch.get_float32_matmul_precision()  # raises where they differ, so now
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(of_all)
        for backend, precision in zip(backends, of_each):
            backend.fp32_precision = precision


@contextmanager
def _all_libraries() -> Iterator[None]:
    """Allows every library and attention kernel: what a script has switched off would be replaced by other sums."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    wanted: list[tuple[Any, str, bool]] = [
        (mkldnn, "enabled", True),
        (mkldnn, "deterministic", False),
        (cudnn, "enabled", True),
        (cudnn, "deterministic", False),
        (cudnn, "benchmark", False),
    ]
    changed = [(owner, name, value) for owner, name, value in wanted if getattr(owner, name) != value]
    with sdpa_kernel(_ATTENTION, set_priority=True), torch.backends.nnpack.flags(enabled=True):
        try:
            for owner, name, value in changed:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in changed:
                setattr(owner, name, not value)


@contextmanager
def _denormal_numbers() -> Iterator[None]:
    """Computes with denormal numbers on this thread, which a script may have had flushed to zero."""
    flushes = flushes_denormals()
    if flushes:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        if flushes:
            torch.set_flush_denormal(True)


def flushes_denormals() -> bool:
    """Whether this thread takes numbers below the smallest normal one for zero; torch has no getter."""
    smallest = torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float32, device="cpu")
    return float(smallest / 2) == 0
