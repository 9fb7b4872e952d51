"""Copies weights to the device while they are needed, and frees the copies. No other file does either."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


@contextmanager
def onload(
    module: nn.Module,
    device: torch.device | str | None,
    *,
    dtype: torch.dtype | None = None,
    without: Collection[nn.Module] = (),
    copies: dict[int, Tensor] | None = None,
) -> Iterator[None]:
    """Makes a module's weights hold copies of their values on `device`, within the context.

    At its end each weight has its own values again, on its own device. So a change of the copies is lost. What the
    module got meanwhile, such as rotary frequencies for a longer text, moves to where the others are.

    Args:
        module: its parameters and buffers.
        device: None leaves each weight on its own.
        dtype: of the copies of floating weights; None for that of the weight.
        without: modules inside it that stay as they are.
        copies: by the id of a weight; those that are there are used, and new ones are put in. None frees every copy.

    Raises:
        ValueError: a weight has no data (`meta`).
    """
    homes: dict[int, tuple[Tensor, Tensor]] = {}
    copies = {} if copies is None else copies
    try:
        for tensor in _weights(module, without):
            if tensor.is_meta:
                raise ValueError(f"a weight on `meta` cannot be copied to {device}: load the model with its weights.")
            homes[id(tensor)] = tensor, tensor.data
            if id(tensor) not in copies:
                wanted = dtype if tensor.is_floating_point() else None
                copies[id(tensor)] = tensor.data.to(device or tensor.device, wanted)
            tensor.data = copies[id(tensor)]
        yield
    finally:
        home = next((values.device for _, values in homes.values()), None)
        for tensor in _weights(module, without):
            if id(tensor) not in homes and home is not None and not tensor.is_meta:
                tensor.data = tensor.data.to(home)
        for tensor, values in homes.values():
            tensor.data = values


def copies_of(
    module: nn.Module, device: torch.device | str | None, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Returns copies of a module's weights by name, for `torch.func.functional_call`.

    A backward pass needs them: autograd keeps a weight itself, which `onload` would have given back by then.

    Args:
        module: its parameters and buffers; they stay as they are.
        device: None leaves each weight on its own.
        dtype: of the copies of floating weights; None for that of the weight.
    """
    return {
        name: tensor.to(device or tensor.device, dtype if tensor.is_floating_point() else None)
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
    }


def _weights(module: nn.Module, without: Collection[nn.Module]) -> Iterator[Tensor]:
    """Yields each parameter and buffer once, except those of `without`."""
    left_out = {id(inner) for part in without for inner in part.modules()}
    seen: set[int] = set()
    for inner in module.modules():
        if id(inner) not in left_out:
            for tensor in chain(inner.parameters(recurse=False), inner.buffers(recurse=False)):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor
