"""Multiplies matrices of 16 bits in float32, where the CPU has no instructions for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

PRODUCTS = frozenset((linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, scaled_dot_product_attention))
_SUPPORTED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def is_slow(dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of this dtype on this CPU in a plain loop.

    It does so without AVX-512 (in float16 without its 16-bit instructions): eight times slower than in float32.
    """
    name = _SUPPORTED.get(dtype)
    if name is None:
        return False
    asked = getattr(torch.ops.mkldnn, name, None)  # absent where torch is built without oneDNN
    return asked is None or not asked()


class Float32Products(TorchFunctionMode):
    """Computes products of 16-bit matrices on the CPU in float32, within the context; each result is rounded once.

    That is what instructions for 16 bits do: they sum in float32, in another order. Products that autograd records stay
    as they are: a checkpoint computes them again during the backward pass, where torch enters no mode.

    Args:
        dtypes: whose products are computed so.
    """

    def __init__(self, dtypes: frozenset[torch.dtype]):
        super().__init__()
        self.dtypes = dtypes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or "out" in kwargs:
            return func(*args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not self._applies(tensors):
            return func(*args, **kwargs)
        dtype = tensors[0].dtype

        def widened(value: Any) -> Any:
            return value.float() if isinstance(value, Tensor) and value.dtype == dtype else value

        product = func(*map(widened, args), **{name: widened(value) for name, value in kwargs.items()})
        return product.to(dtype)

    def _applies(self, tensors: list[Tensor]) -> bool:
        if not tensors:
            return False
        first = tensors[0]
        if first.dtype not in self.dtypes or any(tensor.device.type != "cpu" for tensor in tensors):
            return False
        if any(tensor.is_floating_point() and tensor.dtype != first.dtype for tensor in tensors):
            return False  # which torch refuses, or a mask
        return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
