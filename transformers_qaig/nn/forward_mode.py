"""Forward-mode derivatives of the operators: `torch.func.jvp`, `jacfwd` and dual tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class ForwardModeLibrary(torch.library.Library):
    """A library whose autograd kernels carry tangents along.

    `torch.library.register_autograd` has no place for a forward-mode rule. Its kernels drop tangents without a message,
    so that derivatives are zero.
    """

    def impl(self, op_name: str, fn: Callable[..., Any], dispatch_key: str = "", **options: Any) -> None:
        """Registers `fn` as [`torch.library.Library.impl`] does, with a rule for the tangents around it."""
        super().impl(
            op_name, partial(_with_tangents, getattr(torch.ops.qaig, op_name).default, fn), dispatch_key, **options
        )


def is_active() -> bool:
    """Whether dual tensors may be in use."""
    return forward_ad._current_level >= 0


def _with_tangents(
    op: torch._ops.OpOverload, kernel: Callable[..., Tensor], keyset: Any, x: Tensor, *args: Any
) -> Tensor:
    """Calls `kernel`; where tensors are dual, makes the result dual: the operators are linear in x and bias."""
    if not is_active():
        return kernel(keyset, x, *args)
    primals, tangents = [], []
    for value in (x, *args):
        primal, tangent = forward_ad.unpack_dual(value) if isinstance(value, Tensor) else (value, None)
        primals.append(primal)
        tangents.append(tangent)
    names = [argument.name for argument in op._schema.arguments]
    linear_in = {0, names.index("bias")} if "bias" in names else {0}
    moving = [index for index, tangent in enumerate(tangents) if tangent is not None]
    if not moving:
        return kernel(keyset, x, *args)
    if not set(moving) <= linear_in:
        raise NotImplementedError("a packed weight is a constant: its tensors must have no tangent")
    arguments = [torch.zeros_like(primals[0]) if tangents[0] is None else tangents[0], *primals[1:]]
    if "bias" in names:
        arguments[names.index("bias")] = tangents[names.index("bias")]
    if "activation_bits" in names:  # as gradients do, tangents go straight through the rounding
        arguments[names.index("activation_bits")] = 16
    return forward_ad.make_dual(op(*primals), op(*arguments))
