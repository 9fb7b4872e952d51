"""Runs a whole model forwards and backwards in float32 with one block at a time on the device.

`Offload`, which is for forward passes alone, cannot do it: a backward pass reads weights after their hooks are over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def sequential_onload(
    model: nn.Module, blocks: Sequence[nn.Module], device: torch.device | str | None
) -> Iterator[None]:
    """Makes the model compute in float32 with one block at a time on `device`, within the context.

    A block's weights are copied there when it runs. For a backward pass only its inputs are kept, and it runs again.
    What is around the blocks (embeddings, towers, head) moves to `device` and to float32 within the context. A 16-bit
    model comes back unchanged, because the copies in between are exact. So the device holds the parts around the
    blocks, one block, its activations for one batch, and each block's input.

    Args:
        model: its parameters need no gradients.
        blocks: run one after the other. Their own parameters stay where they are.
        device: None computes where the model is.
    """
    inside = {id(module) for block in blocks for module in block.modules()}
    tensors = {
        id(tensor): tensor
        for module in model.modules()
        if id(module) not in inside
        for tensor in chain(module.parameters(recurse=False), module.buffers(recurse=False))
    }
    homes = {key: (tensor.device, tensor.dtype) for key, tensor in tensors.items()}
    with ExitStack() as stack:
        for key, tensor in tensors.items():
            stack.callback(_set, tensor, *homes[key])
            _set(tensor, device or tensor.device, torch.float32)
        for block in blocks:
            stack.callback(_restore, block, vars(block).get("forward"))
            block.forward = _Onloaded(block, device)
        yield


def moved(sample: Mapping[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    """Copies one sample's inputs to `device`, where `sequential_onload` has the parts that read them.

    Args:
        sample: the model's inputs.
        device: None leaves them where they are.
    """
    return {k: v.to(device) if isinstance(v, torch.Tensor) and device is not None else v for k, v in sample.items()}


class _Onloaded:
    """Stands in for `block.forward`."""

    def __init__(self, block: nn.Module, device: torch.device | str | None):
        self._block, self._device, self._inside = block, device, False
        self._forward = block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._inside:
            return self._forward(*args, **kwargs)
        if torch.is_grad_enabled():
            return checkpoint(self._run, *args, use_reentrant=False, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        state = {
            name: tensor.to(self._device or tensor.device, torch.float32 if tensor.is_floating_point() else None)
            for name, tensor in chain(self._block.named_parameters(), self._block.named_buffers())
        }
        self._inside = True
        try:
            return torch.func.functional_call(self._block, state, args, kwargs)
        finally:
            self._inside = False


def _set(tensor: torch.Tensor, device: torch.device | str, dtype: torch.dtype) -> None:
    tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else None)


def _restore(block: nn.Module, forward: Any) -> None:
    del block.forward
    if forward is not None:
        block.forward = forward
