"""Makes float32 products of few rows the same to the last bit for every number of threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from torch.overrides import TorchFunctionMode

ROWS = 128
"""From this many rows on each thread gets whole tiles, and only leftover rows would differ."""
TILE = 4
ALIGNED = 8


class FewRows(TorchFunctionMode):
    """Pads few rows of a float32 `linear` on the CPU with zeros to a multiple of 8, within the context.

    BLAS splits rows among threads, and sums the rows that do not fill a tile in another order. Which rows these are
    then depends on the number of threads; a last bit that flips changes codes. Rows that fill tiles are safe. Products
    in 16 bits are summed in one order already. Products that autograd records stay as they are: a checkpoint computes
    them again during the backward pass, where torch enters no mode.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not linear:
            return func(*args, **(kwargs or {}))
        x, weight, bias = _operands(*args, **(kwargs or {}))
        if not _is_split(x) or _is_recorded((x, weight, bias)):
            return func(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])
        product = func(pad(rows, (0, 0, 0, -len(rows) % ALIGNED)), weight, bias)
        return product[: len(rows)].reshape(*x.shape[:-1], product.shape[-1])


def _operands(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the operands of `linear`, which may be given by name."""
    return input, weight, bias


def _is_recorded(tensors: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _is_split(x: Tensor) -> bool:
    """Whether the number of threads decides which rows of `x` fill a tile."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
        return False
    rows = x.numel() // x.shape[-1]
    return TILE < rows < ROWS and rows % TILE != 0
