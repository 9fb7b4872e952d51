"""Sets how the CPU multiplies matrices during quantization: fast, and alike for every number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from ..structure import ModelStructure
from .few_rows import FewRows
from .float32_products import Float32Products, is_slow

HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def cpu_products(structure: ModelStructure) -> Iterator[None]:
    """Enters [`Float32Products`] for dtypes that need it, and [`FewRows`] where there are products in float32.

    Args:
        structure: of the model.
    """
    slow = frozenset(dtype for dtype in HALVES if is_slow(dtype))
    with ExitStack() as stack:
        if slow or structure.has_float32:
            stack.enter_context(FewRows())
        if slow:  # the last that is entered is asked first, and hands its products on
            stack.enter_context(Float32Products(slow))
        yield
